"""Spans from texts: on every real tokenizer, and where a normaliser changes what a side says."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

import numpy as np
import pytest
from families import FAMILIES_AND_WORDY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from span_checks import any_text, check, chunk_rows, expected_rows, id_rows, surfaces_of, vocab, without_prefix

from xtoken_align import Vocab
from xtoken_align.errors import OptionError
from xtoken_align.spans.aligner import align_ids, align_texts
from xtoken_align.spans.fold import text_by_offsets
from xtoken_align.spans.tables import pair_tables

Real = Callable[[str], Vocab]

_RING = (
    *("llama-3", "qwen3", "llama-4", "mistral-v1", "deepseek", "mistral-tekken", "o200k", "mistral-v3", "qwen3.6"),
    *("cl100k", "j2", "gpt-oss"),
)
_AROUND = [(name, _RING[at - 1]) for at, name in enumerate(_RING)]
_PAIRS = [*_AROUND, *(pair[::-1] for pair in _AROUND[1::3])]

REAL_TEXT = (
    'In 1969, NASA\'s Apollo 11 landed on the Moon; 600,000,000 people watched — "one small step".\n\n'
    "def fact(n: int) -> int:\n    return 1 if n < 2 else n * fact(n - 1)\n\n"
    "Größe, naïve, œuvre, İstanbul. Съешь же ещё этих мягких французских булок. "
    "مرحبا بالعالم. שלום עולם. 你好，世界！ 日本語のテキスト。한국어 텍스트. ภาษาไทย क्षत्रिय 👩‍👩‍👧 🇩🇪 👍🏽\t€ 3,14\n"
)


def normal_form(student: Vocab, teacher: Vocab) -> Callable[[bytes], bytes] | None:
    steps = [side.encoder.normalize for side in (student, teacher)]
    if all(step(probe) == probe for step in steps for probe in ("A", "e\u0301", "ﬁ")):
        return None

    def fold(said: bytes) -> bytes:
        # Between digits, with which nothing composes: normalisers may strip what stands at an edge.
        text = f"0{said.decode('utf-8', 'surrogateescape')}0"
        if any("\ud800" <= character <= "\udfff" for character in text):
            return said
        for step in steps:
            text = step(text)
        return text.encode()

    return fold


@pytest.mark.parametrize(("student", "teacher"), _PAIRS, ids=str)
def test_real_chunks_are_minimal_ascending_equal_and_complete(real: Real, student: str, teacher: str) -> None:
    ours, theirs = real(student), real(teacher)
    fold = normal_form(ours, theirs)
    lossless = []

    @settings(max_examples=6, suppress_health_check=list(HealthCheck))
    @given(st.lists(any_text(), min_size=5, max_size=5))
    def holds(texts: list[str]) -> None:
        spans = align_texts(texts, student=ours, teacher=theirs)
        for row in range(len(texts)):
            ids, chunks = id_rows(spans, row), chunk_rows(spans, row)
            check(ids, chunks, ours, theirs, fold)
            said = [surfaces_of(side, own) for side, own in zip((ours, theirs), ids, strict=True)]
            said = [without_prefix(*said), without_prefix(*said[::-1])]
            if b"".join(said[0]) == b"".join(said[1]):
                lossless.append(row)
                expected = expected_rows(*said)
                # A dummy prefix that is a token by itself says nothing of the text.
                assert chunks == tuple(
                    [number if surface else -1 for number, surface in zip(numbers, own, strict=True)]
                    for numbers, own in zip(expected, said, strict=True)
                )

    holds()
    assert lossless
    check_whole(ours, theirs, lossy="j2" in (student, teacher))


def check_whole(student: Vocab, teacher: Vocab, *, lossy: bool) -> None:
    """No token of real text is left out."""
    spans = align_texts([REAL_TEXT], student=student, teacher=teacher)
    statistics = spans.statistics()
    assert statistics.chunks > 100
    # A final line feed is no text for a normaliser that strips.
    assert statistics.student_gaps + statistics.teacher_gaps <= 2 * lossy
    if not lossy:
        texts = [surfaces_of(side, ids) for side, ids in zip((student, teacher), id_rows(spans), strict=True)]
        assert chunk_rows(spans) == expected_rows(without_prefix(*texts), without_prefix(*texts[::-1]))


def test_an_emoji_of_three_pieces_against_one_is_one_chunk() -> None:
    one = vocab([" ", "😊", "!"])
    other = vocab([" ", b"\xf0\x9f", b"\x98", b"\x8a", "!"])
    assert chunk_rows(align_texts([" 😊!"], student=one, teacher=other)) == ([0, 1, 2], [0, 1, 1, 1, 2])
    assert chunk_rows(align_texts([" 😊!"], student=other, teacher=one)) == ([0, 1, 1, 1, 2], [0, 1, 2])


def test_a_split_emoji_is_one_chunk_of_real_tokenizers(real: Real) -> None:
    spans = align_texts(["a 😊 b"], student=real("cl100k"), teacher=real("mistral-v1"))
    said = [surfaces_of(real(side), ids) for side, ids in zip(("cl100k", "mistral-v1"), id_rows(spans), strict=True)]
    assert max(map(len, said[1])) <= 4
    assert chunk_rows(spans) == expected_rows(said[0], without_prefix(*said[::-1]))
    assert spans.statistics().student_gaps == spans.statistics().teacher_gaps == 0


# Normalisers.

_LETTERS = [*"abcdefghijklmnopqrstuvwxyz", " ", "the", " the", "he", "ll", "fi"]
_UPPER = [*"ABCDEFGHIJKLMNOPQRSTUVWXYZ", "THE", "The", "HE", "LL"]


@pytest.mark.parametrize("places", [False, True])
def test_lower_casing_costs_nothing(places: bool) -> None:
    cased = vocab([*_LETTERS, *_UPPER])
    uncased = vocab(_LETTERS, change=str.lower, places=places)
    assert chunk_rows(align_texts(["The HELL"], student=cased, teacher=uncased)) == ([0, 1, 2, 3], [0, 1, 2, 3])
    assert chunk_rows(align_texts(["The HELL"], student=uncased, teacher=cased)) == ([0, 1, 2, 3], [0, 1, 2, 3])


@pytest.mark.parametrize("places", [False, True])
@pytest.mark.parametrize(
    ("form", "text", "plain", "formed", "expected"),
    [
        ("NFC", "xe\u0301y", ["x", "e", "\u0301", "y"], ["x", "é", "y"], ([0, 1, 1, 2], [0, 1, 2])),
        ("NFC", "xéy", ["x", "é", "y"], ["x", "é", "y"], ([0, 1, 2], [0, 1, 2])),
        ("NFKC", "xﬁy", ["x", "ﬁ", "y"], ["x", "f", "i", "y"], ([0, 1, 2], [0, 1, 1, 2])),
        ("NFKC", "①Ａb", ["①", "Ａ", "b"], ["1", "A", "b"], ([0, 1, 2], [0, 1, 2])),
        ("NFD", "xéy", ["xé", "y"], ["x", "e", "\u0301", "y"], ([0, 1], [0, 0, 0, 1])),
    ],
)
def test_normal_forms_cost_nothing(
    places: bool, form: str, text: str, plain: list[str], formed: list[str], expected: tuple[list[int], list[int]]
) -> None:
    # The small encoder places what single characters become, and NFC joins two.
    other = vocab(formed, change=lambda given: unicodedata.normalize(form, given), places=places and form != "NFC")
    assert chunk_rows(align_texts([text], student=vocab(plain), teacher=other)) == expected
    assert chunk_rows(align_texts([text], student=other, teacher=vocab(plain))) == expected[::-1]


def without_accents(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))


@pytest.mark.parametrize("places", [False, True])
def test_accent_stripping_costs_nothing(places: bool) -> None:
    plain, stripped = vocab(["é", "t", "à", " "]), vocab(["et", "e", "a", " "], change=without_accents, places=places)
    assert chunk_rows(align_texts(["été à"], student=plain, teacher=stripped)) == ([0, 0, 1, 2, 3], [0, 1, 2, 3])


def test_a_replacement_of_several_characters_is_placed_by_offsets() -> None:
    quoted = vocab(["a", '"', "b", "c"], change=lambda text: text.replace("``", '"'), places=True)
    encoder = quoted.encoder
    offsets = [(0, 0, 1), (1, 1, 3), (2, 3, 4), (3, 4, 5)]
    encoder.encode_offsets = lambda _: offsets
    plain = vocab(["a", "`", "b", "c"])
    spans = align_texts(["a``bc"], student=plain, teacher=quoted)
    assert chunk_rows(spans) == ([0, 1, 1, 2, 3], [0, 1, 2, 3])


def test_tokens_of_one_character_share_it_and_only_their_outer_edges_compare() -> None:
    # Half a character has no boundary inside: it's ½ on one side and three tokens on the other.
    plain = vocab(["x½", "y"])
    formed = vocab(["x", "1", "⁄", "2y"], change=lambda t: unicodedata.normalize("NFKC", t), places=True)
    formed.encoder.encode_offsets = lambda _: [(0, 0, 1), (1, 1, 2), (2, 1, 2), (3, 1, 3)]
    assert chunk_rows(align_texts(["x½y"], student=plain, teacher=formed)) == ([0, 0], [0, 0, 0, 0])
    split = vocab(["x", "½", "y"])
    assert chunk_rows(align_texts(["x½y"], student=split, teacher=formed)) == ([0, 1, 1], [0, 1, 1, 1])


def test_line_feeds_that_a_normaliser_turns_into_spaces_cost_nothing(real: Real) -> None:
    text = "def f(x):\n    return x\n 12345\nfoo\n\nbar"
    statistics = align_texts([text], student=real("j2"), teacher=real("qwen3")).statistics()
    assert (statistics.student_gaps, statistics.teacher_gaps) == (0, 0)


@pytest.mark.parametrize(
    ("student", "teacher", "text", "expected"),
    [
        ("clip", "gpt2", "the", ([0], [0])),
        ("clip", "gpt2", "the cat sat", ([0, 1, 2], [0, 1, 2])),
        ("gpt1", "llama2", "the cat sat", ([0, 1, 2], [0, 1, 2])),
        ("bert-uncased", "gpt2", "the cat sat", ([0, 1, 2], [0, 1, 2])),
        ("bert-uncased", "gpt2", "Hello World.", ([0, 1, 2], [0, 1, 2])),
        ("bert-uncased", "llama2", "Hello World.", ([0, 1, 2], [0, 1, 2])),
        # A space by itself is no text for either; marks before which a space stands are.
        ("clip", "gpt2", "cat (7) <div>", ([0, 1, 2, 3, 4, 5, 6], [0, -1, 1, 2, 3, 4, 5, 6])),
        ("bert-uncased", "gpt2", "cat (7) <div>", ([0, 1, 2, 3, 4, 5, 6], [0, -1, 1, 2, 3, 4, 5, 6])),
    ],
)
def test_spaces_that_surfaces_invent_cost_nothing(
    student: str, teacher: str, text: str, expected: tuple[list[int], list[int]]
) -> None:
    ours, theirs = FAMILIES_AND_WORDY[student].vocab(), FAMILIES_AND_WORDY[teacher].vocab()
    spans = align_texts([text], student=ours, teacher=theirs)
    assert chunk_rows(spans) == expected
    ids = id_rows(spans)
    assert chunk_rows(align_ids([ids[0]], [ids[1]], student=ours, teacher=theirs)) == expected
    assert chunk_rows(align_texts([text], student=theirs, teacher=ours)) == expected[::-1]


@pytest.mark.parametrize("name", ["deberta", "t5", "albert"])
def test_a_character_that_a_normaliser_removes_moves_nothing_else(name: str) -> None:
    # The offsets of `tokenizers` are wrong behind it.
    formed, plain = FAMILIES_AND_WORDY[name].vocab(), FAMILIES_AND_WORDY["llama2"].vocab()
    spans = align_texts(["\x07(7)"], student=formed, teacher=plain)
    said = [surfaces_of(side, ids) for side, ids in zip((formed, plain), id_rows(spans), strict=True)]
    chunks = [dict(zip(own, texts, strict=True)) for own, texts in zip(chunk_rows(spans), said, strict=True)]
    for side in chunks:
        side.pop(-1, None)
    assert len(chunks[0]) >= 3
    assert {number: text.strip() for number, text in chunks[0].items()} == chunks[1]


def test_bytes_that_a_normaliser_takes_away_are_in_no_chunk() -> None:
    taking = vocab(["a", "b"], change=lambda text: text.replace("é", ""))
    plain = vocab(["a", b"\xc3", b"\xa9", "b"])
    assert chunk_rows(align_texts(["aéb"], student=taking, teacher=plain)) == ([0, 1], [0, -1, -1, 1])
    assert chunk_rows(align_ids([[0, 0]], [[0, 1, 2, 3, 0]], student=taking, teacher=plain)) == (
        [0, 1],
        [0, -1, -1, -1, 1],
    )


@given(text=any_text())
def test_tokens_that_spell_the_text_lie_on_it_byte_by_byte(text: str) -> None:
    data = text.encode("utf-8", "surrogatepass")
    side = vocab([bytes([byte]) for byte in range(256)])
    said = text_by_offsets(
        text, np.frombuffer(data, dtype=np.uint8).astype(np.int64), side, pair_tables(side, side), first_id=0
    )
    assert said is not None
    assert said.text.tobytes() == data
    assert said.begin.tolist() == list(range(len(data)))
    assert said.end.tolist() == list(range(1, len(data) + 1))


# The edges of texts.

_ONE = vocab(["a", "b", "ab", "<s>", "</s>"], roles={"bos": [3], "eos": [4]})
_OTHER = vocab(["a", "b", "<bos>", "<eos>"], roles={"bos": [2], "eos": [3]})
_NO_EDGES = vocab(["a", "b"])


def test_tokens_that_begin_and_end_a_text_are_chunks_where_both_sides_have_them() -> None:
    spans = align_texts(["abab", ""], student=_ONE, teacher=_OTHER, bos=True, eos=True)
    assert chunk_rows(spans) == ([0, 1, 2, 3], [0, 1, 1, 2, 2, 3])
    assert chunk_rows(spans, 1) == ([0, 1], [0, 1])
    assert spans.weight.tolist() == [[0, 1, 1, 1], [0, 1, 0, 0]]


def test_a_one_sided_beginning_costs_its_own_token_alone() -> None:
    spans = align_texts(["abab"], student=_ONE, teacher=_NO_EDGES, bos=True, eos=True)
    assert chunk_rows(spans) == ([-1, 0, 1, -1], [0, 0, 1, 1])
    assert spans.weight.tolist() == [[0, 1]]


def test_a_text_cut_on_the_right_has_no_end_and_one_cut_on_the_left_has_both() -> None:
    right = align_texts(["ababab"], student=_ONE, teacher=_OTHER, bos=True, eos=True, max_student_tokens=3)
    assert id_rows(right)[0] == [3, 2, 2]
    assert chunk_rows(right) == ([0, 1, 2], [0, 1, 1, 2, 2, -1, -1, -1])
    left = align_texts(
        *(["ababab"],), student=_ONE, teacher=_OTHER, bos=True, eos=True, max_student_tokens=3, truncation_side="left"
    )
    assert id_rows(left)[0] == [3, 2, 4]
    assert chunk_rows(left) == ([-1, 0, 1], [-1, -1, -1, -1, -1, 0, 0, 1])


@pytest.mark.parametrize("side", ["left", "right"])
def test_cut_texts_keep_the_chunks_of_whole_ones_but_for_what_was_cut(real: Real, side: str) -> None:
    ours, theirs = real("llama-3"), real("qwen3.6")
    whole = chunk_rows(align_texts([REAL_TEXT], student=ours, teacher=theirs))
    cut = chunk_rows(
        align_texts([REAL_TEXT], student=ours, teacher=theirs, max_student_tokens=90, truncation_side=side)
    )
    kept = slice(None, 90) if side == "right" else slice(-90, None)
    left = set(whole[0][kept])
    complete = sorted(left - (set(whole[0]) - left) - set(np.setdiff1d(whole[0], whole[0][kept])))
    complete = [number for number in complete if whole[0].count(number) == whole[0][kept].count(number)]
    numbers = {number: at for at, number in enumerate(complete)}
    assert cut[0] == [numbers.get(number, -1) for number in whole[0][kept]]
    assert cut[1] == [numbers.get(number, -1) for number in whole[1]]


def test_padding_stands_on_the_side_asked_for_and_is_in_no_chunk() -> None:
    for side, expected in (("left", [[-1, -1, 0], [0, 1, 2]]), ("right", [[0, -1, -1], [0, 1, 2]])):
        spans = align_texts(["a", "aaa"], student=_NO_EDGES, teacher=_OTHER, padding_side=side)
        assert spans.student.tolist() == expected
        assert spans.student_mask.tolist() == (np.array(expected) >= 0).tolist()


def test_texts_that_spell_specials_are_text() -> None:
    letters = ["<s", "<", "s", ">", "/"]
    one = vocab([(letter, 0) for letter in letters] + ["<s>"])
    spans = align_texts(["<s></s>"], student=one, teacher=vocab([(letter, 0) for letter in "</s>"]))
    assert chunk_rows(spans) == ([0, 1, 2, 3, 4, 5], [0, 0, 1, 2, 3, 4, 5])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"texts": "abc"}, "texts are a sequence"),
        ({"texts": [b"abc"]}, "texts are a sequence of strings, got one of type bytes"),
        ({"texts": ["a", None]}, "texts are a sequence of strings, got one of type NoneType"),
        ({"texts": ["a"], "padding_side": "up"}, "padding_side is left or right, got 'up'"),
        ({"texts": ["a"], "truncation_side": "middle"}, "truncation_side is left or right, got 'middle'"),
        ({"texts": ["a"], "max_student_tokens": 0}, "a maximum of 0 tokens"),
        ({"texts": ["a"], "max_teacher_tokens": 2, "bos": True, "eos": True}, "a maximum of 2 tokens"),
    ],
)
def test_options_without_sense_are_refused_by_name(options: dict[str, object], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        align_texts(student=_ONE, teacher=_OTHER, **options)
