"""`get_or_build`: a pair is built once, and never taken for another."""

from __future__ import annotations

from pathlib import Path

from small_vocabs import make_vocab

from xtoken_align import Store, Vocab, get_or_build
from xtoken_align.vocab.kinds import Kind


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


def test_a_damaged_file_is_built_anew(tmp_path: Path) -> None:
    mapping = get_or_build(**pair(), store=tmp_path)
    (file,) = files(tmp_path)
    file.write_bytes(b"damaged")
    assert get_or_build(**pair(), store=tmp_path).content_hash == mapping.content_hash
    assert Store(tmp_path).find("s--t") == file
    assert file.stat().st_size > 1000
