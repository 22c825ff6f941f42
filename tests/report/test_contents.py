"""What the sections show."""

from __future__ import annotations

import numpy as np
from small_vocabs import make_vocab

from xtoken_align import Mapping, build
from xtoken_align.mapping.audit import audit
from xtoken_align.report.contents import (
    MOST_SPECIALS,
    class_bars,
    mapping_facts,
    piece_counts,
    rule_counts,
    special_decisions,
    totals,
    way_widths,
)
from xtoken_align.rules.pieces import Pieces
from xtoken_align.vocab.kinds import Kind


def pieces(*lengths: int) -> Pieces:
    counts = np.array(lengths, dtype=np.int32)
    return Pieces(counts, np.zeros(counts.sum(), dtype=np.int32), np.zeros(0, dtype=np.int32))


def test_bars_hold_every_row_once(nasty: Mapping) -> None:
    bars = class_bars(nasty.coverage())
    assert sum(sum(bar.rules.values()) for bar in bars) == sum(bar.total for bar in bars) == len(nasty.student.kinds)
    assert sum(rule_counts(nasty.coverage()).values()) == len(nasty.student.kinds)
    assert bars[0].name == "digits_1"


def test_the_strip_of_ways_is_a_hundred_wide(nasty: Mapping) -> None:
    *_, (_, _, left, width) = way_widths(totals(nasty.coverage()))
    assert abs(left + width - 100) < 0.01


def test_lengths_of_ten_pieces_and_more_share_a_bar() -> None:
    assert piece_counts(pieces(0, 1, 2, 2, 4, 10, 99))[-1] == ("10+", 2)
    assert piece_counts(pieces(2, 2, 4)) == [("2", 2), ("3", 0), ("4", 1)]
    assert piece_counts(pieces(0, 1)) == []
    assert piece_counts(pieces()) == []


def test_of_very_many_special_tokens_those_with_a_role_or_a_counterpart_are_listed() -> None:
    names = [f"<|x{number}|>" for number in range(MOST_SPECIALS + 50)]
    student = make_vocab([*((name, Kind.SPECIAL) for name in names)], roles={"eos": [MOST_SPECIALS + 49]})
    teacher = make_vocab([(names[MOST_SPECIALS + 20], Kind.SPECIAL)])
    listed = special_decisions(audit(build(student=student, teacher=teacher)))
    assert len(listed) == MOST_SPECIALS
    assert {MOST_SPECIALS + 20, MOST_SPECIALS + 49} <= {decision.id for decision in listed}
    assert [decision.id for decision in listed] == sorted(decision.id for decision in listed)


def test_options_are_shown_as_a_reader_would_write_them(nasty: Mapping) -> None:
    facts = mapping_facts(nasty)
    assert facts["option decay"] == "0.1"
    assert facts["option overrides"] == "none"
    assert facts["option rules"].startswith("override, identity, exact")
    assert facts["content hash"] == nasty.content_hash
