"""Spans in a notebook: one line, a card, a plot."""

from __future__ import annotations

import pickle
import sys

import pytest
from span_checks import vocab

from xtoken_align.errors import MissingExtraError, OptionError
from xtoken_align.spans.aligner import Aligner, align_ids, align_texts
from xtoken_align.spans.dataset import spans_from_columns

STUDENT = vocab(["a", "bc", "<s>", "<b>", "\n", "\u202e"], roles={"bos": [2]})
TEACHER = vocab(["a", "b", "c", "<b>", "\n", "\u202e"])
PAIR = {"student": STUDENT, "teacher": TEACHER}


def test_the_line_says_rows_tokens_chunks_and_what_is_in_them() -> None:
    spans = align_texts(["abc", ""], bos=True, **PAIR)
    line = "Spans(2 rows, 4 student tokens (50.0% in chunks), 3 teacher tokens (100.0% in chunks), 2 chunks)"
    assert repr(spans) == line
    assert repr(spans.torch()) == line
    assert repr(align_texts([], **PAIR)).startswith("Spans(0 rows, 0 student tokens (100.0% in chunks)")


def test_the_card_escapes_html_and_writes_out_what_would_not_be_seen() -> None:
    card = align_ids([[3, 4, 1, 5]], [[3, 4, 1, 2, 5]], **PAIR)._repr_html_()
    assert "&lt;b&gt;" in card
    assert "<b>" not in card
    assert r"\n" in card
    assert r"\u202e" in card
    assert "\u202e" not in card
    assert "b┊c" in card


def test_the_card_of_a_long_text_says_how_much_is_left_out() -> None:
    assert "100 more chunks and gaps" in align_ids([[0] * 300], [[0] * 300], **PAIR)._repr_html_()
    cards = align_ids([[0]] * 9, [[0]] * 9, **PAIR)._repr_html_()
    assert cards.count("<small>") == 3


def test_the_plot_has_a_column_for_each_chunk_and_gap() -> None:
    pytest.importorskip("matplotlib").use("Agg")
    from matplotlib import pyplot as plt

    ax = align_texts(["abc", "a"], bos=True, **PAIR).plot()
    assert [text.get_text() for text in ax.texts] == ["<s>", "", "a", "a", "bc", "b┊c"]
    assert align_texts(["$a$"[1:2]], **PAIR).plot(ax=ax) is ax
    plt.close(ax.figure)


def test_without_matplotlib_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(MissingExtraError, match="report"):
        align_texts(["a"], **PAIR).plot()


def test_spans_without_vocabularies_are_drawn_as_a_line() -> None:
    spans = align_texts(["abc"], **PAIR)
    columns = {name: [[0]] for name in ("student_ids", "teacher_ids", "student_chunks", "teacher_chunks")}
    for bare in (pickle.loads(pickle.dumps(spans)), spans_from_columns(columns)):
        assert bare._repr_html_() == f"<code>{bare!r}</code>"
        with pytest.raises(OptionError, match="know no vocabularies"):
            bare.plot()


def test_an_aligner_gives_what_the_functions_give() -> None:
    aligner = Aligner(**PAIR, bos=True, eos=True, max_student_tokens=3, truncation_side="left")
    same = align_texts(["abcabc"], **PAIR, bos=True, eos=True, max_student_tokens=3, truncation_side="left")
    assert aligner.texts(["abcabc"]).student.tolist() == same.student.tolist()
    assert (
        aligner.ids([[0, 1]], [[0, 1, 2]]).teacher.tolist() == align_ids([[0, 1]], [[0, 1, 2]], **PAIR).teacher.tolist()
    )
