"""Rank files: what is read, what an alias adds, and how they are told from other files."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtoken_align import Vocab, read_vocab
from xtoken_align.errors import OptionError, VocabularyError
from xtoken_align.readers.rank_file import looks_like_rank_file, parse_ranks, read_rank_file
from xtoken_align.sources.presets import presets
from xtoken_align.vocab.kinds import Kind

pytest.importorskip("tiktoken")

BYTES = [bytes([byte]) for byte in range(256)]


def lines(tokens: Sequence[bytes]) -> bytes:
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))


def written(tmp_path: Path, tokens: Sequence[bytes]) -> Path:
    path = tmp_path / "some.tiktoken"
    path.write_bytes(lines(tokens))
    return path


def small(tmp_path: Path, pattern: str | None = None) -> Vocab:
    return read_vocab(written(tmp_path, [*BYTES, b"ab", b" a", b"abc", b"  "]), pattern=pattern)


@pytest.mark.parametrize(
    ("head", "fits"),
    [
        (b"YQ== 0\nYg== 1", True),
        (b"YQ== 0\r\n", True),
        (b"YQ==\t0", True),
        (b"", False),
        (b"YQ== x", False),
        (b"YQ 0", False),
        (b"a b c", False),
        (b"\x0a\x0e", False),
        (b"YQ== \xc2\xb2", False),
    ],
)
def test_a_rank_file_is_known_by_its_first_line(head: bytes, fits: bool) -> None:
    assert looks_like_rank_file(head) is fits


@given(st.lists(st.binary(min_size=1, max_size=9), min_size=1, max_size=40, unique=True), st.randoms())
def test_tokens_come_back_in_whatever_order_their_lines_stand(tokens: list[bytes], chance: object) -> None:
    shuffled = lines(tokens).splitlines(keepends=True)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    ranks = parse_ranks(b"".join(shuffled), "x")
    assert dict(zip(ranks.tokens, ranks.ranks, strict=True)) == {token: rank for rank, token in enumerate(tokens)}


def test_surfaces_are_the_bytes_and_strings_are_those_of_a_tokenizer_json(tmp_path: Path) -> None:
    vocab = small(tmp_path)
    assert vocab.surfaces.list == [*BYTES, b"ab", b" a", b"abc", b"  "]
    assert [vocab.raw[token] for token in (0x20, 257, 0xE4)] == ["Ġ", "Ġa", "ä"]
    assert (vocab.kinds == Kind.TEXT).all()


def test_the_pattern_decides_where_merges_end(tmp_path: Path) -> None:
    together, apart = small(tmp_path, pattern=r"(?s).+"), small(tmp_path, pattern=r"(?s).")
    assert together.encode_batch(["abc  "]) == [[258, 259]]
    assert apart.encode_batch(["abc"]) == [[97, 98, 99]]
    assert together.fingerprint != apart.fingerprint


@pytest.mark.parametrize("pattern", ["(", "", "x*", r"\b", "(?=a)"])
def test_a_pattern_that_cannot_split_is_refused(
    tmp_path: Path, pattern: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(OptionError, match="split pattern"):
        small(tmp_path, pattern=pattern)


def test_bytes_are_merged_without_regard_to_characters(tmp_path: Path) -> None:
    assert small(tmp_path).encoder.encode_bytes(b"\xffab\xc3") == [255, 256, 0xC3]


def test_lone_surrogates_do_not_stop_a_batch(tmp_path: Path) -> None:
    vocab = small(tmp_path)
    assert vocab.encode_batch(["\ud800", "ab"])[1] == [256]


def test_a_compressed_file_is_the_same_vocabulary(tmp_path: Path) -> None:
    tokens = [*BYTES, b"ab"]
    plain, packed = written(tmp_path, tokens), tmp_path / "some.tiktoken.gz"
    packed.write_bytes(gzip.compress(lines(tokens)))
    assert read_vocab(packed).fingerprint == read_vocab(plain).fingerprint


def test_an_alias_adds_its_special_tokens_after_the_ranks(tmp_path: Path) -> None:
    preset = presets()["llama-3"]
    parsed = read_rank_file(written(tmp_path, BYTES), preset=preset)
    assert parsed.raw[preset.added[0].id] == preset.added[0].text
    assert parsed.width == preset.logits
    assert not parsed.warnings


def test_a_rank_on_the_id_of_an_aliass_special_token_is_refused(tmp_path: Path) -> None:
    taken = presets()["llama-3"].added[0].id
    path = tmp_path / "some.tiktoken"
    path.write_bytes(lines(BYTES) + b"YWI= %d\n" % taken)
    with pytest.raises(VocabularyError, match=f"id {taken} is both"):
        read_rank_file(path, preset=presets()["llama-3"])


def test_a_rank_of_too_many_digits_is_a_broken_line() -> None:
    with pytest.raises(VocabularyError, match="line 2 of x"):
        parse_ranks(b"YQ== 0\nYg== " + b"1" * 5000, "x")
