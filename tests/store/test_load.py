"""Loading by file, name or address; checks against the tokenizers in hand; building what is missing."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_vocabs import make_vocab

from xtoken_align import Mapping, Store, Vocab, build, compat, diff, get_or_build, load
from xtoken_align.builder import plain_options
from xtoken_align.errors import ArtifactError, MismatchError, StoreError, XTokenWarning
from xtoken_align.mapping.file import content_hash, write_archive
from xtoken_align.store import load as load_module
from xtoken_align.store.load import locate_mapping
from xtoken_align.vocab.fingerprint import PART_WORDS
from xtoken_align.vocab.kinds import Kind

BOS, END = (b"<s>", Kind.SPECIAL), (b"<e>", Kind.SPECIAL)
STUDENT = make_vocab(["12", "a", BOS], name="pupil", roles={"bos": [2]})
TEACHER = make_vocab(["1", "2", "a"], name="master")


@pytest.fixture
def mapping() -> Mapping:
    return build(student=STUDENT, teacher=TEACHER)


@pytest.fixture
def saved(mapping: Mapping, tmp_path: Path) -> Path:
    return mapping.save(tmp_path / "mapping.npz")


def test_a_path_is_a_file(saved: Path, mapping: Mapping) -> None:
    assert load(saved).content_hash == load(str(saved)).content_hash == mapping.content_hash


def test_a_store_name_is_found_even_beside_a_folder_of_that_name(
    mapping: Mapping, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store(tmp_path).save(mapping)
    monkeypatch.chdir(tmp_path)
    assert load("pupil--master", store=".").content_hash == mapping.content_hash


@pytest.mark.parametrize("name", ["absent.npz", "some/where", "./here", "/nowhere/at/all.npz"])
def test_what_can_only_be_a_path_is_refused_as_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # `some/where` may be a repository, and nothing is asked of the real Hub
    with pytest.raises(StoreError, match="is no file"):
        load(name)


def test_a_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="is a folder"):
        load(tmp_path)
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match="folder is a folder, and no mapping is called 'folder'"):
        load("folder", store=tmp_path / "store")


@pytest.mark.parametrize("name", ["", "x" * 5000, "a\0b", "\n", "\ud800"])
def test_odd_names_are_refused_like_unknown_ones(name: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        load(name, store=tmp_path)


def test_a_version_asked_for_is_the_one_that_is_loaded(mapping: Mapping, tmp_path: Path) -> None:
    path = Store(tmp_path).save(mapping)
    other = path.rename(path.with_name("0123456789ab.npz"))
    for name in ("pupil--master@0123456789ab", "pupil--master@01", "pupil--master", str(other)):
        with pytest.raises(ArtifactError, match=f"expected version 0123456789ab by its name, found {mapping.version}"):
            load(name, store=tmp_path)


@pytest.mark.parametrize(
    "address", ["hf://", "hf://user", "hf://user/repo/", "hf://user//file", "hf:///repo/file", "hf://a/b/../../x"]
)
def test_a_hub_address_has_user_and_repository(address: str) -> None:
    with pytest.raises(StoreError, match="expected hf://user/repository or hf://user/repository/file"):
        locate_mapping(address)


def test_a_hub_address_is_downloaded_at_its_revision(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from xtoken_align.sources import hub

    asked: list[tuple[Any, ...]] = []

    def download(*arguments: Any) -> Path:
        asked.append(arguments)
        return saved

    monkeypatch.setattr(hub, "download", download)
    load("hf://user/repo@main/deep/mapping.npz")
    load("hf://user/repo/mapping.npz")
    load("hf://user/repo@v1.0")
    load("user/repo")
    load("user/repo@main")
    assert asked == [
        ("user/repo", "deep/mapping.npz", "main"),
        ("user/repo", "mapping.npz", None),
        ("user/repo", "mapping.npz", "v1.0"),
        ("user/repo", "mapping.npz", None),
        ("user/repo", "mapping.npz", "main"),
    ]


def test_the_tokenizers_that_it_was_built_for_fit_without_a_word(saved: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(saved, student=STUDENT, teacher=TEACHER)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (make_vocab(["12", "b", BOS], name="other"), "'a' in pupil and 'b' in other"),
        (make_vocab(["12", "a", "new", BOS], name="other"), "tokens are new"),
        (make_vocab(["12"], name="other"), "gone"),
        (make_vocab(["12", "a", BOS], name="other", normalise={"a": "12"}), "split pattern, normaliser or merges"),
    ],
)
def test_another_text_vocabulary_is_refused_with_what_differs(saved: Path, other: Vocab, says: str) -> None:
    with pytest.raises(MismatchError, match="the mapping's student is pupil, and other is not it") as caught:
        load(saved, student=other)
    assert says in str(caught.value)
    with pytest.raises(MismatchError, match="the mapping's teacher is master"):
        load(saved, teacher=other)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (make_vocab(["12", "a", END], name="other", roles={"bos": [2]}), "id 2 is '<s>' there, '<e>' here"),
        (make_vocab(["12", "a", BOS], name="other", roles={"eos": [2]}), "the roles bos, eos"),
        (
            make_vocab(["12", "a", BOS, (b"", Kind.PADDING)], name="other", roles={"bos": [2]}),
            r"width \(3 there, 4 here\)",
        ),
        (make_vocab(["12", "a", (b"<s>", Kind.RESERVED)], name="other", roles={"bos": [2]}), "1 special or reserved"),
    ],
)
def test_equal_text_with_another_rest_is_loaded_with_a_warning(saved: Path, other: Vocab, says: str) -> None:
    with pytest.warns(XTokenWarning, match=says):
        assert load(saved, student=other).student.name == "pupil"


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("decoder", "the decoder"),
        ("post_processor", "the post-processor"),
        ("special_flags", "the set of flags on special tokens"),
    ],
)
def test_what_is_put_around_text_is_warned_of_by_name(tmp_path: Path, part: str, says: str) -> None:
    one, other = (replace(STUDENT, state=lambda value=value: {part: ("json", value)}) for value in ("x", "y"))
    path = build(student=one, teacher=TEACHER).save(tmp_path / "mapping.npz")
    with pytest.warns(XTokenWarning, match=says):
        load(path, student=other)


@pytest.mark.parametrize("part", ["merges", "scores", "model", "normalizer", "pre_tokenizer", "text_flags"])
def test_an_encoding_that_is_stated_otherwise_is_refused_by_name(tmp_path: Path, part: str) -> None:
    one, other = (replace(STUDENT, state=lambda value=value: {part: ("json", value)}) for value in ("x", "y"))
    path = build(student=one, teacher=TEACHER).save(tmp_path / "mapping.npz")
    with pytest.raises(MismatchError, match=rf"{PART_WORDS[part].split('(')[0]}.*shows in none of"):
        load(path, student=other)
    in_another_form = replace(STUDENT, state=lambda: {part: ("ranks", "y")})
    assert load(path, student=in_another_form).student.name == "pupil"


def test_a_chat_template_is_compared_where_the_mapping_has_one(saved: Path, tmp_path: Path) -> None:
    one, other = (replace(STUDENT, chat_template=text) for text in ("{{ messages }}", "{{ messages }}!"))
    path = build(student=one, teacher=TEACHER).save(tmp_path / "with_template.npz")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(saved, student=other)
        # Jinja drops one line end at the end of a template.
        load(path, student=replace(one, chat_template="{{ messages }}\n"))
    for given in (other, STUDENT):
        with pytest.warns(XTokenWarning, match="the chat template"):
            load(path, student=given)


# Mappings of version 0.2, which had fingerprints of eight lines and no parts.


@pytest.fixture
def earlier(mapping: Mapping, tmp_path: Path) -> Path:
    metadata = {**mapping.metadata(), "schema": 1, "package_version": "0.2.0"}
    for role, vocab in (("student", STUDENT), ("teacher", TEACHER)):
        metadata[role] = {**metadata[role], "fingerprint": vocab._earlier_fingerprint}
        del metadata[role]["parts"]
    metadata["content_hash"] = content_hash(mapping.arrays, metadata)
    path = tmp_path / "earlier.npz"
    write_archive(path, mapping.arrays, metadata)
    return path


def test_an_earlier_mapping_is_read_with_a_note_that_it_knows_less(earlier: Path, mapping: Mapping) -> None:
    with pytest.warns(XTokenWarning, match="knows less than a mapping that is built now"):
        loaded = load(earlier)
    assert loaded.student.parts is None
    assert (loaded.W != mapping.W).nnz == 0


def test_an_earlier_mapping_fits_the_tokenizers_that_it_was_built_for_and_no_others(earlier: Path) -> None:
    with pytest.warns(XTokenWarning, match="knows less"):
        load(earlier, student=STUDENT, teacher=TEACHER)
    otherwise = make_vocab(["12", "a", BOS], name="other", normalise={"a": "12"})
    for other in (TEACHER, otherwise):
        with pytest.warns(XTokenWarning, match="knows less"), pytest.raises(MismatchError, match="is not it"):
            load(earlier, student=other)


def test_an_earlier_mapping_and_a_new_one_differ_in_nothing_that_is_known(earlier: Path, mapping: Mapping) -> None:
    with pytest.warns(XTokenWarning, match="knows less"):
        found = diff(load(earlier), mapping)
    assert not found.differs
    assert found.unknown == ("old",)
    related = compat(found.comparison.old.student, STUDENT)
    assert related.verdict == "same ids, as far as is known of both"
    assert not related.serves


def test_an_earlier_mapping_in_the_store_is_built_anew(earlier: Path, tmp_path: Path) -> None:
    folder = tmp_path / "store" / "pupil--master"
    folder.mkdir(parents=True)
    earlier.rename(folder / "mapping.npz")
    built = get_or_build(student=STUDENT, teacher=TEACHER, store=tmp_path / "store")
    assert built.student.parts is not None


def test_another_generation_of_one_text_vocabulary_is_told_apart(
    real: Callable[[str], Vocab], llama_qwen: Mapping, tmp_path: Path
) -> None:
    path = llama_qwen.save(tmp_path / "mapping.npz")
    with pytest.warns(XTokenWarning, match="llama-3 and the student in hand llama-3.1 have the same text"):
        load(path, student=real("llama-3.1"), teacher=real("qwen3"))
    with pytest.raises(MismatchError, match=r"qwen3\.6 is not it"):
        load(path, teacher=real("qwen3.6"))


def test_the_store_is_the_environments_by_default(
    mapping: Mapping, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XTOKEN_ALIGN_STORE", os.fspath(tmp_path / "env"))
    Store().save(mapping)
    assert load(f"pupil--master@{mapping.version}").content_hash == mapping.content_hash


def pair() -> dict[str, Vocab]:
    return {"student": make_vocab(["a", "b", "ab"], name="s"), "teacher": make_vocab(["a", "b"], name="t")}


def files(root: Path) -> list[Path]:
    return sorted(root.glob("*/*.npz"))


def test_a_pair_is_built_once_and_then_loaded(tmp_path: Path) -> None:
    first = get_or_build(**pair(), store=tmp_path)
    (file,) = files(tmp_path)
    written = file.stat().st_mtime_ns
    assert get_or_build(**pair(), store=tmp_path).content_hash == first.content_hash
    assert file.stat().st_mtime_ns == written


def test_other_options_make_another_mapping_beside_the_first(tmp_path: Path) -> None:
    first = get_or_build(**pair(), store=tmp_path)
    second = get_or_build(**pair(), store=tmp_path, decay=0.5)
    assert first.version != second.version
    assert {file.stem for file in files(tmp_path)} == {first.version, second.version}
    assert get_or_build(**pair(), store=tmp_path).version == first.version


def test_another_tokenizer_under_the_same_name_is_not_served_the_old_mapping(tmp_path: Path) -> None:
    old = get_or_build(**pair(), store=tmp_path)
    upgraded = {**pair(), "teacher": make_vocab(["b", "a"], name="t")}
    new = get_or_build(**upgraded, store=tmp_path)
    assert new.version != old.version
    assert new.teacher.fingerprint == upgraded["teacher"].fingerprint


def test_another_role_or_width_is_another_mapping(tmp_path: Path) -> None:
    def with_end(**roles: list[int]) -> Vocab:
        return make_vocab(["a", "b", (b"<end>", Kind.SPECIAL)], name="t", roles=roles)

    student = pair()["student"]
    plain = get_or_build(student=student, teacher=with_end(), store=tmp_path)
    assert get_or_build(student=student, teacher=with_end(eos=[2]), store=tmp_path).version != plain.version
    assert get_or_build(student=student, teacher=make_vocab(["a", "b"], name="t"), store=tmp_path).version != (
        plain.version
    )


def test_merges_that_show_in_no_line_are_another_mapping_all_the_same(tmp_path: Path) -> None:
    one, other = (replace(STUDENT, state=lambda value=value: {"merges": ("bpe", value)}) for value in (b"x", b"y"))
    for student in (one, other, other):
        mapping = get_or_build(student=student, teacher=TEACHER, store=tmp_path)
        assert mapping.student.parts is not None
        assert mapping.student.parts.stated["merges"] == student.parts.stated["merges"]


def test_a_damaged_file_is_built_anew(tmp_path: Path) -> None:
    mapping = get_or_build(**pair(), store=tmp_path)
    (file,) = files(tmp_path)
    file.write_bytes(b"damaged")
    assert get_or_build(**pair(), store=tmp_path).content_hash == mapping.content_hash
    assert Store(tmp_path).find("s--t") == file
    assert file.stat().st_size > 1000


@pytest.mark.parametrize("stored", [{}, {"student": 3}, {"student": {"fingerprint": 1}}, {"student": {"sizes": []}}])
def test_metadata_that_lacks_its_parts_does_not_stop_a_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: dict[str, Any]
) -> None:
    monkeypatch.setattr(load_module, "read_metadata", lambda _: {"options": plain_options(), **stored})
    built = get_or_build(student=STUDENT, teacher=TEACHER, store=tmp_path)
    assert get_or_build(student=STUDENT, teacher=TEACHER, store=tmp_path).content_hash == built.content_hash


def test_a_link_that_leads_nowhere_does_not_stop_a_build(mapping: Mapping, tmp_path: Path) -> None:
    folder = tmp_path / "pupil--master"
    folder.mkdir()
    (folder / "0123456789ab.npz").symlink_to(tmp_path / "nowhere")
    assert get_or_build(student=STUDENT, teacher=TEACHER, store=tmp_path).version == mapping.version
