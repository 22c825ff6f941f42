"""Files for other programs: each is read as its reader reads it, and says what the mapping says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_vocabs import make_vocab, vocabs

import xtoken_align
from xtoken_align.errors import MissingExtraError, OptionError, StoreError
from xtoken_align.limits import MAX_PLACES
from xtoken_align.mapping.formats import FORMATS, common_pairs, top_links
from xtoken_align.mapping.mapping import Mapping
from xtoken_align.rules.links import EXACT_RULES, RULES
from xtoken_align.vocab.kinds import Kind
from xtoken_align.vocab.vocab import Vocab

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.numpy")

SPECIALS = [(b"<s>", Kind.SPECIAL), (b"<eot>", Kind.SPECIAL), (b"<pad>", Kind.PADDING)]


def small() -> Mapping:
    """The student packs `12` and ` the cat`; both have `<s>`; `<eot>` is the teacher's `<end>` by its role."""
    student = make_vocab(
        ["1", "2", "12", "a", " the", " cat", " the cat", "b", ("\xe9".encode(), Kind.TEXT), (b"\xc3", Kind.TEXT),
         (b"\xa9", Kind.TEXT), *SPECIALS],
        name="pupil", roles={"bos": [11], "eot": [12]},
    )  # fmt: skip
    teacher = make_vocab(
        ["b", "a", (b"<s>", Kind.SPECIAL), "1", "2", "3", " cat", " the", (b"\xa9", Kind.TEXT), (b"\xc3", Kind.TEXT),
         (b"<end>", Kind.SPECIAL)],
        name="master", roles={"bos": [2], "eot": [10]},
    )  # fmt: skip
    return xtoken_align.build(student=student, teacher=teacher)


def as_nemo_rl_reads(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What NeMo-RL makes of a projection matrix: every place of the table is a cell, and cells below 0 are dropped."""
    stored = torch.load(path, weights_only=True)
    indices, likelihoods = stored["indices"].long(), stored["likelihoods"].float()
    assert indices.shape == likelihoods.shape
    rows = torch.arange(len(indices)).unsqueeze(1).expand(-1, indices.shape[1]).reshape(-1)
    columns, values = indices.reshape(-1), likelihoods.reshape(-1)
    kept = columns >= 0
    return rows[kept].numpy(), columns[kept].numpy(), values[kept].numpy()


@settings(max_examples=25, deadline=None)
@given(vocabs("s"), vocabs("t"), st.booleans())
def test_nemo_rl_reads_w_bit_for_bit(tmp_path_factory, student: Vocab, teacher: Vocab, reverse_pass: bool) -> None:
    mapping = xtoken_align.build(student=student, teacher=teacher, reverse_pass=reverse_pass)
    path = tmp_path_factory.mktemp("nemo") / "projection.pt"
    mapping.export(path, format="nemo-rl")

    rows, columns, values = as_nemo_rl_reads(path)
    read = np.zeros(mapping.matrix.shape, dtype=np.float32)
    np.add.at(read, (rows, columns), values)
    assert len(rows) == len(mapping.matrix.data)
    assert np.array_equal(read, mapping.W.toarray())


def test_nemo_rl_finds_rows_of_one_link_by_their_weight_and_the_second_column(tmp_path: Path) -> None:
    mapping = small()
    written = mapping.export(tmp_path / "p.pt", format="nemo-rl")
    stored = torch.load(tmp_path / "p.pt", weights_only=True)
    indices, likelihoods = stored["indices"], stored["likelihoods"]

    assert (likelihoods[:, :-1] >= likelihoods[:, 1:]).all()
    exact = (likelihoods[:, 0] == 1.0) & (indices[:, 1] == -1)
    assert exact.nonzero().flatten().tolist() == np.flatnonzero(np.diff(mapping.matrix.indptr) == 1).tolist()
    assert indices[2].tolist()[:2] == [3, 4]  # `12` is `1` and `2`
    assert (stored["student_model_id"], stored["teacher_model_id"], stored["enable_scale_trick"]) == (
        "pupil", "master", False
    )  # fmt: skip
    assert json.loads(stored["xtoken_align"])["mapping"] == mapping.content_hash
    assert written.holds == {"indices": "int64 (14, 2)", "likelihoods": "float32 (14, 2)"}


def test_a_table_may_keep_the_heaviest_links_alone(tmp_path: Path) -> None:
    mapping = small()
    written = mapping.export(tmp_path / "p.pt", format="nemo-rl", top_k=1)
    rows, columns, values = as_nemo_rl_reads(tmp_path / "p.pt")

    top = mapping.matrix.top[0]
    assert dict(zip(rows.tolist(), columns.tolist(), strict=True)) == {
        row: column for row, column in enumerate(top.tolist()) if column >= 0
    }
    assert set(values.tolist()) == {1.0}
    assert written.notes[1] == "3 rows have more than 1 links: the heaviest are kept, and normalised again."

    widest = int(np.diff(mapping.matrix.indptr).max())
    whole, cut = top_links(mapping.matrix), top_links(mapping.matrix, widest)
    assert all(np.array_equal(one, other) for one, other in zip(whole[:2], cut[:2], strict=True))
    assert cut[2] == 0


def test_safetensors_and_sparse_tensors_are_w(tmp_path: Path) -> None:
    mapping = small()
    mapping.export(tmp_path / "w.safetensors", format="safetensors")
    arrays = safetensors.load_file(tmp_path / "w.safetensors")
    for name in ("indptr", "indices", "data", "position", "rule"):
        assert np.array_equal(arrays[name], getattr(mapping.matrix, name)), name
        assert arrays[name].dtype == getattr(mapping.matrix, name).dtype
    assert arrays["shape"].tolist() == [14, 11]
    with safetensors_file(tmp_path / "w.safetensors") as file:
        said = file.metadata()
    assert (said["mapping"], json.loads(said["rules"])) == (mapping.content_hash, list(RULES))
    assert json.loads(said["metadata"]) == json.loads(json.dumps(mapping.metadata()))

    for layout, expected in (("csr", torch.sparse_csr), ("coo", torch.sparse_coo)):
        mapping.export(tmp_path / "w.pt", format="torch", layout=layout)
        tensor = torch.load(tmp_path / "w.pt", weights_only=True)
        assert (tensor.layout, tensor.dtype) == (expected, torch.float32)
        assert np.array_equal(tensor.to_dense().numpy(), mapping.W.toarray())


def safetensors_file(path: Path):
    from safetensors import safe_open

    return safe_open(path, "numpy")


def test_json_has_the_rows_of_show_and_parquet_one_for_each_link(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    mapping = small()
    mapping.export(tmp_path / "w.json", format="json")
    text = (tmp_path / "w.json").read_text(encoding="utf-8")
    stored = json.loads(text)
    shown = [mapping.row(token_id).to_dict() for token_id in range(14)]
    assert stored["rows"] == [{key: row[key] for key in ("id", "surface", "kind", "rule", "row")} for row in shown]
    assert len(text.splitlines()) == 14 + 2  # a line for each row, and the two around them
    assert (stored["shape"], stored["student"], stored["mapping"]) == ([14, 11], "pupil", mapping.content_hash)

    mapping.export(tmp_path / "w.parquet", format="parquet")
    table = parquet.read_table(tmp_path / "w.parquet")
    matrix = mapping.matrix
    for name, column in (("student_id", matrix.rows), ("teacher_id", matrix.indices), ("weight", matrix.data),
                         ("position", matrix.position)):  # fmt: skip
        assert np.array_equal(table[name].to_numpy(), column), name
    for link in table.to_pylist():
        assert link["student_surface"] == mapping.student.surfaces[link["student_id"]]
        assert link["teacher_surface"] == mapping.teacher.surfaces[link["teacher_id"]]
        assert link["rule"] == mapping.row(link["student_id"]).links[0].rule
    by_surface = {link["student_surface"]: link["student_text"] for link in table.to_pylist()}
    assert (by_surface[b" the"], by_surface[b"\xc3"]) == (" the", None)
    assert table.schema.metadata[b"mapping"].decode() == mapping.content_hash


# Speculative decoding


def test_pairs_have_equal_surfaces_and_every_token_once() -> None:
    mapping = small()
    draft, target = common_pairs(mapping)
    surfaces = [(mapping.student.surfaces[d], mapping.teacher.surfaces[t]) for d, t in zip(draft, target, strict=True)]
    assert all(one == other for one, other in surfaces)
    # `<eot>` and `<end>` have one role and are not the same token.
    assert {one for one, _ in surfaces} == {b"b", b"a", b"<s>", b"1", b"2", b" cat", b" the", b"\xa9", b"\xc3"}
    assert target.tolist() == sorted(set(target.tolist()))


def test_of_two_student_tokens_with_one_surface_the_written_one_is_in_the_pair() -> None:
    student = make_vocab(["a", "b", "a"], name="twice")
    teacher = make_vocab(["x", "a"], name="once")
    mapping = xtoken_align.build(student=student, teacher=teacher)
    assert mapping.teacher_pieces[1] == [0]
    assert [ids.tolist() for ids in common_pairs(mapping)] == [[0], [1]]


def test_d2t_is_offsets_and_the_other_maps_are_absolute(tmp_path: Path) -> None:
    mapping = small()
    written = mapping.export(tmp_path / "d2t.safetensors", format="d2t")
    mapping.export(tmp_path / "tli.safetensors", format="tli")
    mapping.export(tmp_path / "map.pt", format="token-map")
    d2t = safetensors.load_file(tmp_path / "d2t.safetensors")
    tli = safetensors.load_file(tmp_path / "tli.safetensors")
    absolute = torch.load(tmp_path / "map.pt", weights_only=True).numpy()

    # vLLM scatters a draft head's logits to `arange + d2t`; SGLang makes its hot ids of the same sum.
    targets = np.arange(len(d2t["d2t"])) + d2t["d2t"]
    assert targets.tolist() == absolute.tolist() == np.flatnonzero(d2t["t2d"]).tolist()
    draft, target = d2t["draft_ids"], targets
    # Whoever reads offsets as ids gets other tokens, and whoever reads ids as offsets leaves the vocabulary.
    assert d2t["d2t"].tolist() != absolute.tolist()
    assert (np.arange(len(absolute)) + absolute).max() >= mapping.matrix.shape[1]

    assert (len(tli["draft_to_target_ids"]), len(tli["target_to_draft_ids"])) == mapping.matrix.shape
    assert np.array_equal(tli["draft_to_target_ids"][draft], target)
    assert np.array_equal(tli["target_to_draft_ids"][target], draft)
    assert np.array_equal(tli["intersection_mask_draft"], tli["draft_to_target_ids"] >= 0)
    assert int((tli["target_to_draft_ids"] >= 0).sum()) == int(tli["intersection_mask_draft"].sum()) == len(draft)
    with safetensors_file(tmp_path / "d2t.safetensors") as file:
        assert file.metadata()["ids"] == "offsets"
    with safetensors_file(tmp_path / "tli.safetensors") as file:
        assert file.metadata()["ids"] == "absolute"
    assert "i + d2t[i]" in written.notes[0]


def test_a_real_pair_has_a_pair_for_each_exact_row(tmp_path: Path) -> None:
    mapping = xtoken_align.load("llama-3--qwen3")
    written = mapping.export(tmp_path / "tli.safetensors", format="tli")
    ids = safetensors.load_file(tmp_path / "tli.safetensors")["draft_to_target_ids"]
    draft = np.flatnonzero(ids >= 0)
    assert len(draft) == mapping.coverage().rules["exact"] == 109_566
    student, teacher = mapping.student.surfaces.list, mapping.teacher.surfaces.list
    assert all(student[d] == teacher[t] for d, t in zip(draft.tolist(), ids[draft].tolist(), strict=True))
    assert written.holds["pairs"] == "109,566"
    # The rows of special tokens are by role alone: `<|eot_id|>` is `<|im_end|>` and so on.
    assert {RULES[rule] for rule in mapping.matrix.owner[draft]} <= set(EXACT_RULES)

    projection = mapping.export(tmp_path / "p.pt", format="nemo-rl")
    rows, columns, values = as_nemo_rl_reads(tmp_path / "p.pt")
    assert projection.bytes < 7_000_000
    order = np.lexsort((columns, rows))
    assert np.array_equal(columns[order], mapping.matrix.indices)
    assert np.array_equal(values[order], mapping.matrix.data)


# Refusals


def test_wrong_options_are_refused_before_anything_is_written(tmp_path: Path, monkeypatch) -> None:
    mapping, path = small(), tmp_path / "file"
    for match, options in (
        ("there is no format 'nemo': choose one of nemo-rl", {"format": "nemo"}),
        ("layout is an option of the format torch, and json was asked for", {"format": "json", "layout": "coo"}),
        ("layout is one of csr, coo, got 'bsr'", {"format": "torch", "layout": "bsr"}),
        ("top_k is an option of the format nemo-rl", {"format": "tli", "top_k": 4}),
        ("top_k is a whole number of links from 1 to 1024, got 0", {"format": "nemo-rl", "top_k": 0}),
    ):
        with pytest.raises(OptionError, match=match):
            mapping.export(path, **options)
    apart = xtoken_align.build(student=make_vocab(["a"], name="one"), teacher=make_vocab(["b"], name="other"))
    for name in ("tli", "d2t", "token-map"):
        with pytest.raises(OptionError, match="one and other have no token in common"):
            apart.export(path, format=name)
    assert not path.exists()

    monkeypatch.setattr("xtoken_align.mapping.formats.MAX_PLACES", 14 * 2 - 1)
    with pytest.raises(OptionError, match="a row has 2 links, and a table of 14 x 2 is too large: keep"):
        mapping.export(path, format="nemo-rl")
    assert MAX_PLACES > 262_144 * 32


def test_a_file_that_is_there_stays_whole(tmp_path: Path) -> None:
    mapping, path = small(), tmp_path / "w.json"
    path.write_text("mine")
    with pytest.raises(StoreError, match="found one: remove it or allow it to be replaced"):
        mapping.export(path, format="json", overwrite=False)
    assert path.read_text() == "mine"
    assert mapping.export(path, format="json").bytes == path.stat().st_size > 4
    with pytest.raises(StoreError, match="cannot write"):
        mapping.export(tmp_path / "missing" / "w.json", format="json")
    assert [entry.name for entry in tmp_path.iterdir()] == ["w.json"]


@pytest.mark.parametrize(
    ("name", "library", "extra"),
    [("nemo-rl", "torch", "torch"), ("tli", "safetensors.numpy", "export"), ("parquet", "pyarrow", "export")],
)
def test_a_missing_library_is_named_with_its_extra(tmp_path, monkeypatch, name: str, library: str, extra: str) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'xtoken-align\[{extra}\]'"):
        small().export(tmp_path / "file", format=name)


def test_every_format_says_what_it_is() -> None:
    assert all(entry.about for entry in FORMATS.values())
