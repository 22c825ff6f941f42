"""Tokenizer files that are damaged, contradict themselves or are hostile: one sentence each, and no other error."""

from __future__ import annotations

import base64
import gzip
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import FAMILIES, FAMILIES_AND_WORDY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xtoken_align import Vocab, limits, read_vocab
from xtoken_align.errors import OptionError, SourceError, VocabularyError, XTokenError, XTokenWarning
from xtoken_align.limits import MAX_ID
from xtoken_align.vocab import surfaces
from xtoken_align.vocab.kinds import Kind

Json = dict[str, Any]


def small() -> Json:
    """A word-level file that is easy to break."""
    return {
        "version": "1.0",
        "added_tokens": [{"id": 3, "content": "<s>", "special": True}],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 1, "b": 2}, "unk_token": "[UNK]"},
    }


def write(path: Path, data: object) -> Path:
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    return path


def read(tmp_path: Path, data: object) -> Vocab:
    return read_vocab(write(tmp_path / "tokenizer.json", data))


def ranks(tmp_path: Path, content: bytes) -> Vocab:
    path = tmp_path / "some.tiktoken"
    path.write_bytes(content)
    return read_vocab(path)


def pair(token: bytes, rank: object) -> bytes:
    return base64.b64encode(token) + f" {rank}".encode()


BYTES = [pair(bytes([byte]), byte) for byte in range(256)]


# One id, one token


def test_an_id_with_two_strings_in_the_vocabulary_is_refused(tmp_path: Path) -> None:
    data = small()
    data["model"]["vocab"]["c"] = 2
    with pytest.raises(VocabularyError, match=r"id 2 .*'b' and 'c'"):
        read(tmp_path, data)


def test_an_id_with_two_strings_among_the_added_tokens_is_refused(tmp_path: Path) -> None:
    data = small()
    data["added_tokens"].append({"id": 3, "content": "</s>", "special": True})
    with pytest.raises(VocabularyError, match=r"id 3 .*'<s>' and '</s>'"):
        read(tmp_path, data)


def test_an_added_token_on_the_id_of_another_token_is_refused(tmp_path: Path) -> None:
    data = small()
    data["added_tokens"][0]["id"] = 1
    with pytest.raises(VocabularyError, match=r"id 1 .*'a' and '<s>'"):
        read(tmp_path, data)


def test_an_added_token_that_repeats_its_base_token_is_no_contradiction(tmp_path: Path) -> None:
    data = small()
    data["added_tokens"] = [{"id": 0, "content": "[UNK]", "special": True}] * 2
    assert read(tmp_path, data).sizes.with_added == 3


def test_a_key_that_stands_twice_in_the_vocabulary_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(small()).replace('"a": 1', '"a": 1, "a": 7'), encoding="utf-8")
    with pytest.raises(VocabularyError, match="'a'"):
        read_vocab(path)


# Vocabularies that are not there


@pytest.mark.parametrize("vocab", [{}, [], None, 5, "a", {"a": None}, {"a": "1"}, {"a": -1}, {"a": 1.5}, {"a": True}])
def test_a_vocabulary_that_is_no_table_of_ids_is_refused(tmp_path: Path, vocab: object) -> None:
    data = small()
    data["model"]["vocab"] = vocab
    data["added_tokens"] = []
    with pytest.raises(XTokenError):
        read(tmp_path, data)


@pytest.mark.parametrize("entry", ["a", ["a"], ["a", "b", "c"], [1, 2.0], ["a", "x"], None, 5, {"a": 1}])
def test_a_unigram_entry_that_is_no_pair_is_refused(tmp_path: Path, entry: object) -> None:
    data = small()
    data["model"] = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], entry]}
    with pytest.raises(VocabularyError):
        read(tmp_path, data)


@pytest.mark.parametrize("missing", ["model", "vocab"])
def test_json_without_a_vocabulary_is_no_tokenizer(tmp_path: Path, missing: str) -> None:
    data = small()
    del (data if missing == "model" else data["model"])[missing]
    with pytest.raises(SourceError, match=r"model\.vocab"):
        read(tmp_path, data)


@pytest.mark.parametrize("huge", [2**24, 2**31, 2**63, 2**100])
def test_an_id_beyond_every_real_vocabulary_is_refused_at_once(tmp_path: Path, huge: int) -> None:
    data = small()
    data["model"]["vocab"]["c"] = huge
    with pytest.raises(VocabularyError, match="ids lie between"):
        read(tmp_path, data)
    data = small()
    data["added_tokens"][0]["id"] = huge
    with pytest.raises(VocabularyError, match="ids lie between"):
        read(tmp_path, data)


@pytest.mark.parametrize("wrong", ["7", 7.5, True, None])
def test_an_added_token_whose_id_is_no_whole_number_is_refused(tmp_path: Path, wrong: object) -> None:
    data = small()
    data["added_tokens"][0]["id"] = wrong
    with pytest.raises(VocabularyError, match="added token"):
        read(tmp_path, data)


def test_a_vocabulary_of_nothing_but_special_tokens_is_refused(tmp_path: Path) -> None:
    data = small()
    data["model"]["vocab"] = {"[UNK]": 0}
    with pytest.raises(VocabularyError, match="no ordinary tokens"):
        read(tmp_path, data)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_truncated_json_is_refused(tmp_path: Path, kept: float) -> None:
    text = json.dumps(small())
    path = tmp_path / "tokenizer.json"
    path.write_text(text[: int(len(text) * kept)], encoding="utf-8")
    with pytest.raises(SourceError, match="not whole JSON"):
        read_vocab(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x00\x01\x02", b"[1]", b"{}", b"null", b"\xff\xfe{", b"GGUF"])
def test_a_file_in_no_known_format_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(SourceError):
        read_vocab(path)


def test_json_nested_deeper_than_the_parser_goes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text('{"model":' + "[" * 200_000, encoding="utf-8")
    with pytest.raises(SourceError):
        read_vocab(path)


# Wrong shapes at every level


def nodes(value: object, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    """The paths of every node, of long tables and lists the first few entries only."""
    found = [path]
    if isinstance(value, dict):
        for key in sorted(value)[:12]:
            found += nodes(value[key], (*path, key))
    elif isinstance(value, list):
        for index, child in enumerate(value[:4]):
            found += nodes(child, (*path, index))
    return found


def refusal(file: Path) -> str | None:
    """Why a file is refused, None if it is read and can encode; any other error is the test's failure."""
    try:
        read_vocab(file).encode_batch(["the cat <s> \n 12 ab é"])
    except XTokenError as error:
        return str(error)
    return None


JUNK = (None, 0, -1, 2**70, 1.5, True, "", "x", "\ud800", [], {}, [None], [[]], {"type": "Nonsense"}, {"id": 1})


@pytest.mark.parametrize("name", list(FAMILIES_AND_WORDY))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draw=st.data())
def test_a_damaged_node_anywhere_gives_a_vocabulary_or_one_clear_error(
    tmp_path: Path, name: str, draw: st.DataObject
) -> None:
    data = FAMILIES_AND_WORDY[name].data()
    for _ in range(draw.draw(st.integers(1, 2))):
        path = draw.draw(st.sampled_from([path for path in nodes(data) if path]))
        parent: Any = data
        for key in path[:-1]:
            parent = parent[key]
        if draw.draw(st.booleans()):
            del parent[path[-1]]
        else:
            # A copy, since the next round may reach into it.
            parent[path[-1]] = deepcopy(draw.draw(st.sampled_from(JUNK)))
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(data), encoding="utf-8")
    message = refusal(file)
    assert message is None or (message and "\n" not in message)


@pytest.mark.parametrize("name", ["gpt2", "nllb"])
def test_a_normaliser_at_which_the_library_panics_is_refused(tmp_path: Path, name: str) -> None:
    # `tokenizers` 0.23 loses count of its offsets after an empty match.
    emptying = {"type": "Replace", "pattern": {"Regex": r"\p{L}*"}, "content": "\\1"}
    data = FAMILIES[name].data()
    data["normalizer"] = {"type": "Sequence", "normalizers": [emptying, {"type": "StripAccents"}]}
    with pytest.raises(VocabularyError, match="cannot encode"):
        read(tmp_path, data)


# Rank files


@pytest.mark.parametrize("line", [b"!!!! 300", b"YWI= x", b"YWI=", b"YWI= 300 1", b"YWI 300", b"YWI= -1", b"YWI= 3.0"])
def test_a_broken_line_is_named(tmp_path: Path, line: bytes) -> None:
    with pytest.raises(VocabularyError, match="line 257"):
        ranks(tmp_path, b"\n".join([*BYTES, line]))


def test_a_rank_that_stands_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match="rank 7 "):
        ranks(tmp_path, b"\n".join([*BYTES, pair(b"ab", 7)]))


@pytest.mark.parametrize("rank", [2**24, 2**32, 10**30, "9" * 5000])
def test_a_rank_beyond_every_real_vocabulary_is_refused(tmp_path: Path, rank: object) -> None:
    with pytest.raises(VocabularyError, match=r"rank|line"):
        ranks(tmp_path, b"\n".join([*BYTES, pair(b"ab", rank)]))


@pytest.mark.parametrize("content", [b"\n\n\n", b"   ", b"\r\n"])
def test_a_rank_file_without_tokens_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(VocabularyError, match="no tokens"):
        ranks(tmp_path, content)


@pytest.mark.parametrize("end", [b"\r\n", b"\n\n", b" \n"])
def test_line_ends_and_blank_lines_change_nothing(tmp_path: Path, end: bytes) -> None:
    lines = [*BYTES, pair(b"ab", 256)]
    assert ranks(tmp_path, end.join(lines)).fingerprint == ranks(tmp_path, b"\n".join(lines) + b"\n").fingerprint


def test_a_text_with_a_byte_that_no_rank_spells_has_no_ids(tmp_path: Path) -> None:
    vocab = ranks(tmp_path, b"\n".join(line for line in [*BYTES, pair(b"ab", 256)] if line != pair(b"z", ord("z"))))
    assert vocab.encode_batch(["az", "ab"]) == [[], [256]]
    assert vocab.encoder.encode_bytes(b"z") == []
    assert vocab.kinds[ord("z")] == Kind.HOLE


def test_two_ranks_with_equal_bytes_both_stay_and_text_becomes_the_lower(tmp_path: Path) -> None:
    vocab = ranks(tmp_path, b"\n".join([*BYTES, pair(b"ab", 300), pair(b"ab", 256)]))
    assert vocab.surfaces[256] == vocab.surfaces[300] == b"ab"
    assert vocab.encode_batch(["ab"]) == [[256]]
    assert vocab.repeated_surfaces == 1


def test_an_unknown_rank_file_warns_that_its_pattern_is_a_guess(tmp_path: Path) -> None:
    with pytest.warns(XTokenWarning, match="GPT-2's split pattern"):
        ranks(tmp_path, b"\n".join(BYTES))


def test_a_pattern_that_is_no_regular_expression_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.tiktoken"
    path.write_bytes(b"\n".join(BYTES))
    with pytest.raises(OptionError, match="split pattern"):
        read_vocab(path, pattern="(")


def test_half_a_gzip_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.tiktoken.gz"
    path.write_bytes(gzip.compress(b"\n".join(BYTES))[:-20])
    with pytest.raises(SourceError, match="gzip"):
        read_vocab(path)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draw=st.data())
def test_random_damage_to_a_rank_file_gives_a_vocabulary_or_one_clear_error(
    tmp_path: Path, draw: st.DataObject
) -> None:
    content = bytearray(b"\n".join([*BYTES, pair(b"ab", 256), pair(b" the", 257)]))
    for _ in range(draw.draw(st.integers(1, 3))):
        content[draw.draw(st.integers(0, len(content) - 1))] = draw.draw(st.integers(0, 255))
    path = tmp_path / "some.tiktoken"
    path.write_bytes(content)
    assert refusal(path) != ""


# Tekken


def tekken() -> Json:
    vocab = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
        for rank, token in enumerate([*(bytes([byte]) for byte in range(256)), b"ab", b" the", b"abc"])
    ]
    special = [
        {"rank": 0, "token_str": "<unk>", "is_control": True},
        {"rank": 1, "token_str": "<s>", "is_control": True},
    ]
    config = {
        "pattern": r"\s?\p{L}+|\s+|.",
        "num_vocab_tokens": 259,
        "default_vocab_size": 262,
        "default_num_special_tokens": 4,
        "version": "v3",
    }
    return {"config": config, "vocab": vocab, "special_tokens": special}


def test_a_tekken_file_puts_its_ranks_after_the_special_ids_and_cuts_them(tmp_path: Path) -> None:
    vocab = read(tmp_path, tekken())
    assert vocab.sizes.logits == 262
    assert vocab.encode_batch(["ab the"]) == [[256 + 4, 257 + 4]]
    assert [Kind(kind) for kind in vocab.kinds[:5]] == [
        *(Kind.SPECIAL, Kind.SPECIAL),
        *(Kind.RESERVED, Kind.RESERVED),
        Kind.TEXT,
    ]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("config", "default_vocab_size"), None),
        (("config", "default_vocab_size"), 2),
        (("config", "default_num_special_tokens"), -1),
        (("config", "default_num_special_tokens"), 1000),
        (("config", "default_num_special_tokens"), "many"),
        (("config", "pattern"), "("),
        (("vocab", 3, "rank"), 4),
        (("vocab", 3, "rank"), -4),
        (("vocab", 3, "token_bytes"), "!"),
        (("vocab", 3, "token_bytes"), None),
        (("vocab", 3), 5),
        (("vocab",), []),
        (("special_tokens", 0, "rank"), 9),
        (("special_tokens", 1, "rank"), 0),
        (("special_tokens", 0), "x"),
        (("special_tokens",), 7),
    ],
)
def test_a_tekken_file_with_a_wrong_field_is_refused(tmp_path: Path, place: tuple[Any, ...], value: object) -> None:
    data: Any = tekken()
    node = data
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    with pytest.raises(XTokenError):
        read(tmp_path, data)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draw=st.data())
def test_random_damage_to_a_tekken_file_gives_a_vocabulary_or_one_clear_error(
    tmp_path: Path, draw: st.DataObject
) -> None:
    data = tekken()
    path = draw.draw(st.sampled_from([path for path in nodes(data) if path]))
    node: Any = data
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = draw.draw(st.sampled_from(JUNK))
    path_of_file = tmp_path / "tekken.json"
    path_of_file.write_text(json.dumps(data), encoding="utf-8")
    assert refusal(path_of_file) != ""


# Bounds on memory and time


def test_the_largest_id_is_read_and_the_next_is_refused(tmp_path: Path) -> None:
    data = small()
    data["added_tokens"][0]["id"] = MAX_ID
    assert len(read(tmp_path, data)) == MAX_ID + 1
    data["added_tokens"][0]["id"] = MAX_ID + 1
    with pytest.raises(VocabularyError, match=f"ids lie between 0 and {MAX_ID}"):
        read(tmp_path, data)


@pytest.mark.parametrize("packed", [True, False])
def test_a_file_beyond_the_largest_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    monkeypatch.setattr(limits, "MAX_TOKENIZER_BYTES", 2000)
    content = b"\n".join(BYTES)
    assert len(gzip.compress(content)) < 2000 < len(content)
    path = tmp_path / "bomb.tiktoken"
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(SourceError, match="more than 2,000 bytes: no tokenizer's file is that large"):
        read_vocab(path)


def test_more_lines_than_ids_are_refused_without_taking_them_apart(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match="over 1,048,576 lines"):
        ranks(tmp_path, BYTES[0] + b"\n" * (MAX_ID + 2))


def with_decoder(pattern: str, content: str = "", steps: int = 1) -> Json:
    data = small()
    data["model"]["vocab"]["a" * 60 + "!"] = 3
    data["added_tokens"] = []
    step = {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}
    data["decoder"] = {"type": "Sequence", "decoders": [step] * steps}
    return data


def test_a_pattern_that_backtracks_without_end_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surfaces, "MAX_PATTERN_SECONDS", 0.1)
    with pytest.raises(VocabularyError, match="it backtracks without end"):
        read(tmp_path, with_decoder("^(a|aa)+$"))


@pytest.mark.parametrize("pattern", ["(" * 400 + "a" + ")" * 400, "a" * 20_000])
def test_a_pattern_that_no_file_has_is_refused(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(VocabularyError, match="by a pattern"):
        read(tmp_path, with_decoder(pattern))


@pytest.mark.parametrize(("part", "steps"), [("normalizer", "normalizers"), ("decoder", "decoders")])
def test_steps_that_multiply_text_are_refused(tmp_path: Path, part: str, steps: str) -> None:
    data = with_decoder(".", "x" * 30, steps=2)
    step = data.pop("decoder")["decoders"][0]
    data |= {"decoder": None, part: {"type": "Sequence", steps: [step, step]}}
    with pytest.raises(VocabularyError, match=f"the {part} of tokenizer.json makes up to 900 characters of one"):
        read(tmp_path, data)
    data[part] = step
    assert len(read(tmp_path, data)) == 4


# Directories, widths, holes and doubles


def test_a_directory_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "config.json", {"vocab_size": 8})
    with pytest.raises(SourceError, match="holds no tokenizer"):
        read_vocab(tmp_path)


def test_ids_above_the_width_of_config_json_are_cut_with_a_warning(tmp_path: Path) -> None:
    write(tmp_path / "tokenizer.json", small())
    write(tmp_path / "config.json", {"vocab_size": 2})
    with pytest.warns(XTokenWarning, match="left out"):
        vocab = read_vocab(tmp_path)
    assert vocab.sizes.logits == len(vocab.surfaces) == 2
    assert vocab.sizes.ids == vocab.sizes.with_added == 4
    assert vocab.encode_batch(["a b"]) == [[1, 0]]


def test_ids_above_the_users_width_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "tokenizer.json", small())
    with pytest.raises(VocabularyError, match="ids up to 3"):
        read_vocab(path, logits=3)


@pytest.mark.parametrize("logits", [0, -1])
def test_a_width_is_positive(tmp_path: Path, logits: int) -> None:
    with pytest.raises(OptionError, match="positive"):
        read_vocab(write(tmp_path / "tokenizer.json", small()), logits=logits)


def test_the_users_width_wins_over_config_json_and_pads(tmp_path: Path) -> None:
    write(tmp_path / "tokenizer.json", small())
    write(tmp_path / "config.json", {"vocab_size": 6})
    assert read_vocab(tmp_path).kinds[4:].tolist() == [Kind.PADDING] * 2
    vocab = read_vocab(tmp_path, logits=9)
    assert vocab.kinds[4:].tolist() == [Kind.PADDING] * 5
    assert vocab.raw[4:] == ("",) * 5


def test_holes_stay_holes_and_ids_stay_the_files_own(tmp_path: Path) -> None:
    data = small()
    data["model"]["vocab"] = {"[UNK]": 0, "a": 4, "b": 9}
    data["added_tokens"] = [
        {"id": 12, "content": "<s>", "special": True},
        {"id": 15, "content": "cc", "special": False},
    ]
    vocab = read(tmp_path, data)
    assert np.flatnonzero(vocab.kinds == Kind.HOLE).tolist() == [1, 2, 3, 5, 6, 7, 8, 10, 11, 13, 14]
    assert vocab.encode_batch(["a cc b <s>"])[0][:3] == [4, 15, 9]
    assert vocab.sizes.base == 3
    assert vocab.sizes.with_added == 5


def test_two_ids_with_equal_surfaces_are_fine(tmp_path: Path) -> None:
    data = FAMILIES["llama2"].data()
    vocab = read(tmp_path, data)
    letter, escape = list(vocab.raw).index("a"), list(vocab.raw).index("<0x61>")
    assert vocab.surfaces[letter] == vocab.surfaces[escape] == b"a"
    assert vocab.repeated_surfaces > 0
    assert vocab.encode_batch(["a"]) == [[letter]]
