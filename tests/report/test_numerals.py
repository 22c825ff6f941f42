"""The grid of numerals."""

from __future__ import annotations

from small_vocabs import make_vocab

from xtoken_align import Mapping, build
from xtoken_align.report.tables import counts, numerals
from xtoken_align.vocab.kinds import Kind


def small() -> Mapping:
    student = make_vocab(["7", "12", "9", "3", ("5", Kind.SPECIAL), "007", "12", "1000"], name="student")
    teacher = make_vocab(["7", "1", "2", " 9"], name="teacher")
    return build(student=student, teacher=teacher)


def test_every_numeral_has_a_cell_that_names_its_rule_and_pieces() -> None:
    cells = [cell for hundred in numerals(small()) for cell in hundred.cells]
    assert len(cells) == 1000
    assert cells[7].title == "7: exact, 7 (1)"
    assert cells[12].title == "12: digits, 1 (0.9091), 2 (0.09091)"
    assert cells[9].title == "9: space,  9 (1)"
    assert cells[3].title == "3: empty, teacher cannot spell it"
    assert cells[8].title == "8: not a token"


def test_only_text_tokens_that_are_the_bare_numeral_count() -> None:
    assert counts(numerals(small())) == {"exact": 1, "near": 1, "split": 1, "empty": 1, "absent": 996}


def test_cells_lie_ten_to_a_row() -> None:
    hundreds = numerals(small())
    assert [(hundred.first, len(hundred.cells)) for hundred in hundreds[:2]] == [(0, 100), (100, 100)]
    assert (hundreds[3].cells[47].x, hundreds[3].cells[47].y) == (7, 4)
    assert hundreds[3].name == "300–399"
