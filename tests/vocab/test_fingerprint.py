"""The fingerprint and its parts: equal exactly where text means and becomes the same ids, whatever the file's form."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from families import FAMILIES, FAMILIES_AND_WORDY, vocab_of
from small_vocabs import make_vocab

from xtoken_align import Vocab
from xtoken_align.errors import VocabularyError
from xtoken_align.vocab.canary import canary, common_lines
from xtoken_align.vocab.fingerprint import Parts, compare_stated
from xtoken_align.vocab.kinds import Kind

END = (b"<end>", Kind.SPECIAL)


def test_names_specials_roles_and_padding_do_not_count() -> None:
    plain = make_vocab(["a", "b"], name="one")
    assert plain.fingerprint == make_vocab(["a", "b"], name="two").fingerprint
    assert plain.fingerprint == make_vocab(["a", "b", END], roles={"eos": [2]}).fingerprint
    assert plain.fingerprint == make_vocab(["a", "b", (b"", Kind.PADDING), (b"<unused1>", Kind.RESERVED)]).fingerprint


def test_a_surface_an_id_or_the_way_of_encoding_counts() -> None:
    plain = make_vocab(["a", "b", "T", "h"]).fingerprint
    assert plain != make_vocab(["a", "c", "T", "h"]).fingerprint
    assert plain != make_vocab(["b", "a", "T", "h"]).fingerprint
    assert plain != make_vocab(["a", "b", "T", "h", "e"]).fingerprint
    assert plain != make_vocab(["a", "b", "T", "h"], normalise={"T": "h"}).fingerprint


def test_where_one_token_ends_and_the_next_begins_counts() -> None:
    assert make_vocab(["ab", "c"]).fingerprint != make_vocab(["a", "bc"]).fingerprint


# The canary


def test_the_common_lines_are_thousands_and_the_same_under_every_version_of_python() -> None:
    lines = common_lines()
    assert len(lines) > 3500
    assert len(set(lines)) == len(lines)
    told = hashlib.sha256("\0".join(lines).encode()).hexdigest()
    # Another hash means other fingerprints: every mapping, cache and run that was written before is of another form.
    assert told == "cfa557c34e3613070374b8c31fb35e176f627d8c5ba1a0bb7d14077ac5f6d52e"


@pytest.mark.parametrize("run", [" " * 7, "\n\n", "\r\n\r\n", "\t\t\t", "\n \n", " \n\t", "\u00a0", "\u3000", "\u2028"])
def test_every_run_of_white_space_stands_inside_at_the_beginning_and_at_the_end(run: str) -> None:
    lines = set(common_lines())
    assert {f"a{run}b", run, f"{run}Word{run}"} <= lines


def test_both_normal_forms_of_letters_are_in_it() -> None:
    text = "\n".join(common_lines())
    for character in ("é", "e\u0301", "Å", "\u212b", "ﬁ", "²", "Ａ", "\uac00", "\u1100\u1161", "ﷺ"):
        assert character in text


def test_a_vocabularys_own_lines_hold_the_tokens_at_its_ends_twice_in_a_row() -> None:
    vocab = make_vocab(["a", "TAG"])
    lines = canary(vocab.ids_of(Kind.TEXT), vocab.surfaces)
    assert any("TAGTAG" in line and " TAG " in line for line in lines)


def test_a_line_that_a_tokenizer_refuses_does_not_stop_the_others() -> None:
    plain = make_vocab(["a", "b"])

    class Picky:
        dummy_prefix = False

        def encode_batch(self, texts: list[str]) -> list[list[int]]:
            if any("\u3000" in text for text in texts):
                raise VocabularyError("no")
            return plain.encode_batch(texts)

    vocab = make_vocab(["a", "b"])
    object.__setattr__(vocab, "make_encoder", Picky)
    differing = vocab.parts.lines != plain.parts.lines
    lines = canary(vocab.ids_of(Kind.TEXT), vocab.surfaces)
    assert [line for line, differs in zip(lines, differing, strict=True) if differs] == [
        line for line in lines if "\u3000" in line
    ]


# Parts by value


def changed(name: str, change: Callable[[dict[str, Any]], None]) -> tuple[Parts, Parts]:
    data = FAMILIES_AND_WORDY[name].data()
    change(data)
    return FAMILIES_AND_WORDY[name].vocab().parts, vocab_of(data).parts


def differing(one: Parts, other: Parts) -> list[str]:
    compared = compare_stated(one.stated, other.stated, sorted(one.stated.keys() | other.stated.keys()))
    return [name for name, equal in compared.items() if equal is not True]


def swap_merges(data: dict[str, Any]) -> None:
    merges = data["model"]["merges"]
    merges[-1], merges[-2] = merges[-2], merges[-1]


def nudge_a_score(data: dict[str, Any]) -> None:
    data["model"]["vocab"][-1][1] -= 0.25


def add_bos(data: dict[str, Any]) -> None:
    special = {"id": "x", "ids": [0], "tokens": ["x"]}
    single = [{"SpecialToken": {"id": "x", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
    data["post_processor"] = {
        "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": {"x": special}
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "change", "part"),
    [
        ("qwen", swap_merges, "merges"),
        ("t5", nudge_a_score, "scores"),
        ("qwen", lambda data: data["model"].update(ignore_merges=True), "model"),
        ("qwen", lambda data: data.update(normalizer={"type": "NFKC"}), "normalizer"),
        ("qwen", lambda data: data["pre_tokenizer"]["pretokenizers"].pop(0), "pre_tokenizer"),
        ("llama2", lambda data: data["decoder"]["decoders"].pop(), "decoder"),
        ("qwen", add_bos, "post_processor"),
        ("qwen", lambda data: data["added_tokens"][0].update(lstrip=True), "special_flags"),
    ],
)
def test_a_part_that_changes_is_the_one_part_that_differs(
    name: str, change: Callable[[dict[str, Any]], None], part: str
) -> None:
    assert differing(*changed(name, change)) == [part]


def wrapped(data: dict[str, Any]) -> None:
    for part, key in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers"), ("decoder", "decoders")):
        if data.get(part):
            data[part] = {"type": "Sequence", key: [{"type": "Sequence", key: [data[part]]}]}


def without_defaults(data: dict[str, Any]) -> None:
    defaults = {"use_regex": True, "split": True}
    for part in ("pre_tokenizer", "decoder"):
        for leaf in (data.get(part) or {}).get("pretokenizers", [data.get(part) or {}]):
            for key, value in defaults.items():
                if leaf.get(key) is value:
                    del leaf[key]


def old_merges(data: dict[str, Any]) -> None:
    data["model"]["merges"] = [" ".join(merge) for merge in data["model"]["merges"]]


def other_offsets(data: dict[str, Any]) -> None:
    data["post_processor"] = {"type": "ByteLevel", "trim_offsets": False, "add_prefix_space": True, "use_regex": False}


def absent_options(data: dict[str, Any]) -> None:
    data["model"] = {key: value for key, value in data["model"].items() if value not in (None, False)}


@pytest.mark.parametrize("name", ["gpt2", "qwen", "llama3", "llama2", "t5", "bert-uncased", "metaspace-first"])
@pytest.mark.parametrize("change", [wrapped, without_defaults, absent_options])
def test_a_file_that_says_the_same_in_another_way_has_equal_parts(
    name: str, change: Callable[[dict[str, Any]], None]
) -> None:
    assert differing(*changed(name, change)) == []


@pytest.mark.parametrize("change", [old_merges, other_offsets])
def test_a_byte_level_file_that_says_the_same_in_another_way_has_equal_parts(
    change: Callable[[dict[str, Any]], None],
) -> None:
    assert differing(*changed("qwen", change)) == []


def test_two_post_processors_that_put_the_same_ids_around_texts_are_equal() -> None:
    def with_post(post: dict[str, Any]) -> Parts:
        return vocab_of(FAMILIES_AND_WORDY["bert-uncased"].data() | {"post_processor": post}).parts

    def special(name: str, kind: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": name, "type_id": kind}}

    first, second = ({"Sequence": {"id": name, "type_id": kind}} for kind, name in enumerate("AB"))
    template = {
        "type": "TemplateProcessing",
        "single": [special("c", 0), first, special("s", 0)],
        "pair": [special("c", 0), first, special("s", 0), second, special("s", 1)],
        "special_tokens": {
            "c": {"id": "c", "ids": [2], "tokens": ["c"]},
            "s": {"id": "s", "ids": [3], "tokens": ["s"]},
        },
    }
    bert = {"type": "BertProcessing", "cls": ["c", 2], "sep": ["s", 3]}
    assert differing(with_post(template), with_post(bert)) == []
    assert differing(with_post(template), with_post({**bert, "cls": ["c", 4]})) == ["post_processor"]


def test_a_flag_that_needs_a_normaliser_says_nothing_without_one() -> None:
    def normalized(data: dict[str, Any]) -> None:
        data["added_tokens"][0]["normalized"] = not data["added_tokens"][0]["normalized"]

    assert differing(*changed("llama3", normalized)) == []
    assert differing(*changed("qwen", normalized)) == ["special_flags"]


def test_values_in_two_forms_are_not_compared() -> None:
    assert compare_stated({"a": "x:1", "b": "x:1"}, {"a": "y:1", "c": "x:2"}, "abcd") == dict.fromkeys("abc")


def test_parts_come_back_from_what_a_file_has_of_them() -> None:
    parts = FAMILIES["qwen"].vocab().parts
    again = Parts.from_metadata(parts.to_metadata())
    assert again.fingerprint == parts.fingerprint
    assert again.stated == parts.stated
    np.testing.assert_array_equal(again.lines, parts.lines)


def test_the_form_of_an_earlier_version_is_still_known() -> None:
    vocab: Vocab = make_vocab(["a", "b", "T", "h"])
    # What version 0.2 wrote for these four tokens.
    earlier = "224c589260739ad8565efc5ea7976f92f6b95e57a11591068c92948d30b4c8f7"
    assert vocab.has_fingerprint(vocab.fingerprint)
    assert vocab.has_fingerprint(earlier)
    assert not make_vocab(["a", "b", "T", "x"]).has_fingerprint(earlier)
