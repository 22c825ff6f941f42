"""The file of a mapping: its hash, its bytes, and what is refused."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from numpy.typing import NDArray

from xtoken_align.errors import ArtifactError, StoreError
from xtoken_align.mapping.file import (
    ARRAYS,
    MAX_METADATA_BYTES,
    MAX_NESTING,
    UNHASHED_KEYS,
    UNHASHED_SIDE_KEYS,
    canonical_json,
    content_hash,
    read_archive,
    write_archive,
)

Arrays = dict[str, NDArray[Any]]
Metadata = dict[str, Any]
Retouch = Callable[[Mapping[str, "bytes | NDArray[Any] | None"]], Path]


def assert_refused(path: Path, field: str, found: str = "") -> None:
    with pytest.raises(ArtifactError) as caught:
        read_archive(path)
    assert str(caught.value).startswith(f"{path}: {field}: ")
    assert found in str(caught.value)


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text.encode() + b"\n"


def test_a_file_gives_back_its_arrays_and_metadata(saved: Path, arrays: Arrays, metadata: Metadata) -> None:
    read_arrays, read_metadata = read_archive(saved)
    assert read_metadata == metadata
    assert read_arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(read_arrays[name], array, strict=True)


def test_scipy_reads_the_file_as_the_matrix(saved: Path, arrays: Arrays) -> None:
    matrix = scipy.sparse.load_npz(saved)
    assert matrix.format == "csr"
    assert matrix.shape == (6, 7)
    assert scipy.sparse.csr_matrix(matrix).has_canonical_format
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(matrix, name), arrays[name], strict=True)


def test_numpy_reads_every_member_without_pickle(saved: Path) -> None:
    with np.load(saved, allow_pickle=False) as file:
        assert sorted(file) == sorted([*(member.name for member in ARRAYS), "metadata"])
        assert json.loads(file["metadata"].tobytes())["teacher"]["name"] == "größer"


def test_what_numpy_writes_again_is_read(saved: Path, arrays: Arrays) -> None:
    with np.load(saved, allow_pickle=False) as file:
        members = dict(file)
    np.savez(saved, **members)
    np.testing.assert_array_equal(read_archive(saved)[0]["data"], arrays["data"], strict=True)


def test_equal_mappings_have_equal_bytes(tmp_path: Path, arrays: Arrays, metadata: Metadata) -> None:
    write_archive(tmp_path / "first.npz", arrays, metadata)
    os.utime(tmp_path / "first.npz", (0, 0))
    write_archive(tmp_path / "second.npz", dict(reversed(arrays.items())), dict(reversed(metadata.items())))
    assert (tmp_path / "first.npz").read_bytes() == (tmp_path / "second.npz").read_bytes()


def test_bytes_depend_neither_on_clock_nor_on_machine(saved: Path) -> None:
    with zipfile.ZipFile(saved) as archive:
        infos = archive.infolist()
    assert [info.filename for info in infos] == sorted(info.filename for info in infos)
    stamps = {(info.date_time, info.create_system, info.external_attr, info.compress_type) for info in infos}
    assert stamps == {((1980, 1, 1, 0, 0, 0), 3, 0o644 << 16, zipfile.ZIP_DEFLATED)}


def test_foreign_byte_order_and_layout_are_normalised(saved: Path, arrays: Arrays, metadata: Metadata) -> None:
    before = saved.read_bytes()
    foreign = {"indices": arrays["indices"].astype(">i4"), "data": np.repeat(arrays["data"], 2)[::2]}
    write_archive(saved, arrays | foreign, metadata)
    assert saved.read_bytes() == before


def test_a_flipped_byte_is_refused_wherever_it_is(saved: Path) -> None:
    content = saved.read_bytes()
    for at in range(0, len(content), 3):
        changed = bytearray(content)
        changed[at] ^= 1 << at % 8
        saved.write_bytes(changed)
        with pytest.raises(ArtifactError):
            read_archive(saved)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data", np.zeros(5)),
        ("indices", np.zeros(5, dtype=np.int64)),
        ("rule", np.zeros((5, 1), dtype=np.uint8)),
        ("position", [0, 0, 0, 1, 0]),
        ("student_kind", np.zeros(6, dtype=object)),
        ("shape", np.ones(3, dtype=np.int64)),
    ],
)
def test_an_array_of_another_form_is_not_written(saved: Path, arrays: Arrays, name: str, value: Any) -> None:
    before = saved.read_bytes()
    with pytest.raises(ArtifactError, match=rf"^{name}: expected "):
        write_archive(saved, arrays | {name: value}, {"schema": 1})
    assert saved.read_bytes() == before


def test_a_missing_or_an_unknown_array_is_not_written(tmp_path: Path, arrays: Arrays) -> None:
    with pytest.raises(ArtifactError, match=r"^extra: "):
        write_archive(tmp_path / "a.npz", arrays | {"extra": arrays["data"]}, {"schema": 1})
    del arrays["rule"]
    with pytest.raises(ArtifactError, match=r"^rule: "):
        write_archive(tmp_path / "a.npz", arrays, {"schema": 1})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [float("nan"), object(), "\ud800", "x" * MAX_METADATA_BYTES])
def test_metadata_that_could_not_be_read_is_not_written(tmp_path: Path, arrays: Arrays, value: object) -> None:
    with pytest.raises(ArtifactError, match=r"^metadata: "):
        write_archive(tmp_path / "a.npz", arrays, {"schema": 1, "notes": value})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip file" * 10, b"\x80\x04N." * 20, b"\0" * 4096])
def test_another_kind_of_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    assert_refused(path, "zip directory")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.npz", tmp_path, tmp_path / "nul\0.npz"):
        with pytest.raises(StoreError):
            read_archive(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are a POSIX thing")
def test_a_named_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StoreError, match="something else"):
        read_archive(tmp_path / "pipe")


def test_a_file_cut_anywhere_is_refused(saved: Path) -> None:
    content = saved.read_bytes()
    for size in range(0, len(content), 97):
        saved.write_bytes(content[:size])
        assert_refused(saved, "zip directory")


def test_a_file_with_bytes_after_its_end_is_refused(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes() + b"\0" * 100)
    assert_refused(saved, "zip directory", "cut off or has grown")


def test_a_flipped_byte_in_a_member_is_named(saved: Path) -> None:
    content = bytearray(saved.read_bytes())
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        info = archive.getinfo("indices.npy")
    content[info.header_offset + 30 + len(info.filename) + info.compress_size // 2] ^= 0x10
    saved.write_bytes(content)
    assert_refused(saved, "indices.npy")


@pytest.mark.parametrize("name", [*(member.name for member in ARRAYS), "metadata"])
def test_a_missing_member_is_named(retouch: Retouch, name: str) -> None:
    assert_refused(retouch({name: None}), f"{name}.npy", "found none")


def test_an_unknown_member_is_named(retouch: Retouch) -> None:
    assert_refused(retouch({"__reduce__": b"cos\nsystem\n"}), "'__reduce__.npy'")


def test_a_renamed_member_is_refused(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes().replace(b"position.npy", b"Position.npy"))
    assert_refused(saved, "position.npy", "found none")


def test_a_name_that_goes_on_after_a_nul_is_refused(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes().replace(b"teacher_kind.npy", b"rule.npy\0......."))
    assert_refused(saved, "teacher_kind.npy", "found none")


def test_a_name_that_differs_in_the_member_itself_is_refused(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes().replace(b"position.npy", b"Position.npy", 1))
    assert_refused(saved, "position.npy", "differ")


def test_a_duplicated_member_is_refused(saved: Path) -> None:
    content = saved.read_bytes().replace(b"student_kind.npy", b"teacher_kind.npy")
    saved.write_bytes(content)
    assert_refused(saved, "'teacher_kind.npy'", "found two")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compression_methods_are_refused(saved: Path, method: int) -> None:
    with zipfile.ZipFile(saved) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(saved, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert_refused(saved, "metadata.npy", f"compression method {method}")


def directory_entry(content: bytes | bytearray, name: str) -> int:
    """The offset of a member's entry in the zip directory."""
    return content.rindex(name.encode()) - 46


@pytest.mark.parametrize(
    ("offset", "form", "value", "found"),
    [
        (8, "<H", 0x1, "encrypted"),
        (8, "<H", 0x40, "encrypted"),
        (20, "<L", 1 << 30, "beyond its end"),
        (20, "<L", 3, "damage"),
        (24, "<L", 1 << 31, "2,147,483,648"),
        (24, "<L", 127, "damage"),
        (24, "<L", 134, "found 134"),
        (42, "<L", 1 << 30, "beyond its end"),
    ],
)
def test_a_lying_directory_is_refused(saved: Path, offset: int, form: str, value: int, found: str) -> None:
    content = bytearray(saved.read_bytes())
    struct.pack_into(form, content, directory_entry(content, "position.npy") + offset, value)
    saved.write_bytes(content)
    assert_refused(saved, "position.npy", found)


def test_a_member_that_begins_inside_another_is_refused_with_one_of_the_two(saved: Path) -> None:
    content = bytearray(saved.read_bytes())
    struct.pack_into("<L", content, directory_entry(content, "position.npy") + 42, 7)
    saved.write_bytes(content)
    # Older releases of Python miss the magic number at that place, newer ones say that the other is overlapped.
    with pytest.raises(ArtifactError, match=r"position\.npy: .*Bad magic|data\.npy: .*Overlapped"):
        read_archive(saved)


@pytest.mark.parametrize(("offset", "value"), [(12, 0xFFFFFFFF), (12, 1 << 17), (16, 0xFFFFFFFF), (20, 1)])
def test_a_lying_end_record_is_refused(retouch: Retouch, offset: int, value: int) -> None:
    saved = retouch({})  # written again, and so without a seal that would tell at once
    content = bytearray(saved.read_bytes())
    struct.pack_into("<L" if offset < 20 else "<H", content, len(content) - 22 + offset, value)
    saved.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"zip directory|metadata.npy"):
        read_archive(saved)


def test_a_zip64_directory_is_refused(retouch: Retouch) -> None:
    saved = retouch({})
    content = saved.read_bytes()
    locator = b"PK\x06\x07" + struct.pack("<LQL", 0, 1 << 62, 1)
    saved.write_bytes(content[:-22] + locator + content[-22:])
    assert_refused(saved, "zip directory", "larger")


def test_a_pickled_member_is_refused_before_it_is_unpickled(retouch: Retouch, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "executed"),)

    buffer = io.BytesIO()
    np.save(buffer, np.array([Bomb()], dtype=object), allow_pickle=True)
    assert_refused(retouch({"data": buffer.getvalue()}), "data.npy", "nothing is ever unpickled")
    assert_refused(retouch({"data": pickle.dumps(Bomb())}), "data.npy", "something else")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("name", "array", "found"),
    [
        ("data", np.zeros(5), "'<f8'"),
        ("data", np.zeros(5, dtype=">f4"), "'>f4'"),
        ("indptr", np.zeros(7, dtype=np.int64), "'<i8'"),
        ("rule", np.zeros(5, dtype=[("a", "u1")]), "[('a', '|u1')]"),
        ("format", np.array("csr"), "'<U3'"),
        ("data", np.zeros((5, 1), dtype=np.float32), "shape (5, 1)"),
        ("data", np.float32(1), "shape ()"),
        ("data", np.zeros((2, 2), dtype=np.float32, order="F"), "Fortran order"),
        ("format", np.array([b"csr"]), "shape (1,)"),
        ("shape", np.ones(3, dtype=np.int64), "at most 2 elements"),
    ],
)
def test_another_dtype_order_rank_or_size_is_named(retouch: Retouch, name: str, array: Any, found: str) -> None:
    assert_refused(retouch({name: np.asanyarray(array)}), f"{name}.npy", found)


@pytest.mark.parametrize(
    "text",
    [
        "{'descr': '|u1', 'fortran_order': False, 'shape': (4,), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (6,), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (999999999999,), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (9999999999999999999,), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-5,), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (5), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (5L,), }",
        "{'descr': '|u1', 'fortran_order': True, 'shape': (5,), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (5,), 'more': 1}",
        "{'descr': '|u1', 'shape': (5,), }",
        "__import__('os').abort()",
        "(" * 4000,
        "-" * 4000 + "1",
        " " * 5000,
        "",
    ],
)
def test_a_lying_or_odd_array_header_is_refused(retouch: Retouch, text: str) -> None:
    assert_refused(retouch({"rule": header(text) + bytes(5)}), "rule.npy")


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"\x93NUMPY\x02\x00" + bytes(118)])
def test_a_member_that_is_no_array_is_refused(retouch: Retouch, content: bytes) -> None:
    assert_refused(retouch({"rule": content}), "rule.npy")


def test_a_bomb_is_refused_before_it_is_inflated(retouch: Retouch) -> None:
    bomb = header("{'descr': '|u1', 'fortran_order': False, 'shape': (200000000,), }") + bytes(200_000_000)
    path = retouch({"student_surface_bytes": bomb})
    tracemalloc.start()
    assert_refused(path, "zip directory", "to unfold into")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_a_bomb_in_the_metadata_is_refused_before_it_is_inflated(retouch: Retouch) -> None:
    assert_refused(retouch({"metadata": np.zeros(MAX_METADATA_BYTES * 2, dtype=np.uint8)}), "metadata.npy", "at most")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"schema":1,"schema":1}',
        b'{"schema":1}\xff',
        b'{"schema":1,"notes":NaN}',
        b'{"schema":1,"notes":1e999}',
        b'{"schema":1,"notes":"\\ud800"}',
        b'{"schema":1,"notes":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"schema":1,"notes":' + b"[" * 30 + b"]" * 30 + b"}",
        b'{"schema":1,"notes":' + b"9" * 10_000 + b"}",
        b'{"notes":1}',
        b'{"schema":true}',
        b'{"schema":"1"}',
        b'{"schema":0}',
    ],
)
def test_metadata_that_is_no_plain_json_object_is_refused(retouch: Retouch, text: bytes) -> None:
    with pytest.raises(ArtifactError, match="metadata"):
        read_archive(retouch({"metadata": np.frombuffer(text, dtype=np.uint8)}))


def test_a_newer_schema_asks_for_an_upgrade_whatever_its_members(retouch: Retouch) -> None:
    text = np.frombuffer(b'{"schema":7}', dtype=np.uint8)
    path = retouch({"metadata": text, "rule": None, "row_rule": np.zeros(6, dtype=np.uint8)})
    assert_refused(path, "metadata.schema", "has schema 7, this version reads up to 2: upgrade xtoken-align")


Arrays = dict[str, NDArray[Any]]
Metadata = dict[str, Any]


def test_known_contents_have_the_same_hash_on_every_machine() -> None:
    arrays = {"b": np.array([1, 2], dtype=np.int32), "a": np.array(b"csr")}
    # printf '["a","|S3",[]]\ncsr["b","<i4",[2]]\n\1\0\0\0\2\0\0\0{"schema":1}' | sha256sum
    assert content_hash(arrays, {"schema": 1}) == "d605efdc2da649571aab81fb75babf860a6e994a999412f4e26650b9a0252bc9"


def test_the_order_of_arrays_and_keys_does_not_matter(arrays: Arrays, metadata: Metadata) -> None:
    backwards = content_hash(dict(reversed(arrays.items())), dict(reversed(metadata.items())))
    assert backwards == content_hash(arrays, metadata)


def test_byte_order_and_memory_layout_do_not_matter(arrays: Arrays, metadata: Metadata) -> None:
    spread = np.repeat(arrays["data"], 2)[::2]
    foreign = arrays | {"data": spread, "indices": arrays["indices"].astype(">i4")}
    assert content_hash(foreign, metadata) == content_hash(arrays, metadata)


def test_every_array_counts(arrays: Arrays, metadata: Metadata) -> None:
    digests = {content_hash(arrays, metadata)}
    for name, array in arrays.items():
        changed = np.array(b"csc") if name == "format" else np.append(array, np.ones(1, dtype=array.dtype))
        digests.add(content_hash(arrays | {name: changed}, metadata))
    assert len(digests) == len(arrays) + 1


def test_dtype_and_shape_count_beside_the_bytes(metadata: Metadata) -> None:
    forms: list[NDArray[Any]] = [
        np.zeros(8, np.uint8),
        np.zeros((2, 4), np.uint8),
        np.zeros(2, np.int32),
        np.zeros(2, np.float32),
    ]
    assert len({content_hash({"a": form}, metadata) for form in forms}) == len(forms)


@pytest.mark.parametrize("key", sorted(UNHASHED_KEYS))
def test_provenance_and_dates_do_not_count(arrays: Arrays, metadata: Metadata, key: str) -> None:
    assert content_hash(arrays, metadata | {key: "another"}) == content_hash(arrays, metadata)


@pytest.mark.parametrize("key", sorted(UNHASHED_SIDE_KEYS))
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_names_and_sources_do_not_count(arrays: Arrays, metadata: Metadata, side: str, key: str) -> None:
    renamed = copy.deepcopy(metadata)
    renamed[side][key] = "another"
    assert content_hash(arrays, renamed) == content_hash(arrays, metadata)


@pytest.mark.parametrize("key", ["schema", "options", "rules", "coverage", "bins"])
def test_what_decides_the_mapping_counts(arrays: Arrays, metadata: Metadata, key: str) -> None:
    assert content_hash(arrays, metadata | {key: "another"}) != content_hash(arrays, metadata)


@pytest.mark.parametrize("key", ["fingerprint", "sizes", "roles"])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_what_decides_a_side_counts(arrays: Arrays, metadata: Metadata, side: str, key: str) -> None:
    changed = copy.deepcopy(metadata)
    changed[side][key] = "another"
    assert content_hash(arrays, changed) != content_hash(arrays, metadata)


def test_the_sides_are_not_interchangeable(arrays: Arrays, metadata: Metadata) -> None:
    swapped = metadata | {"student": metadata["teacher"], "teacher": metadata["student"]}
    assert content_hash(arrays, swapped) != content_hash(arrays, metadata)


def test_canonical_json_is_sorted_compact_and_plain_utf8() -> None:
    assert canonical_json({"b": (1, 2.5), "a": "é"}) == '{"a":"é","b":[1,2.5]}'.encode()


def test_number_keys_sort_as_the_strings_that_they_become() -> None:
    assert canonical_json({2: 0, 10: 0}) == canonical_json({"10": 0, "2": 0})


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


def test_canonical_json_takes_the_deepest_nesting_that_is_allowed() -> None:
    assert canonical_json(nested(MAX_NESTING)) == b"[" * MAX_NESTING + b"]" * MAX_NESTING


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), "\ud800", b"bytes", {1, 2}, nested(MAX_NESTING + 1), nested(100_000)]
)
def test_canonical_json_refuses_what_has_no_plain_text(value: object) -> None:
    with pytest.raises(ArtifactError, match=r"^metadata: "):
        canonical_json({"notes": value} if not isinstance(value, list) else value)
