"""Path-exact KL (2026), as loops: every outcome of the student whose probability the teacher's rows on the text fix.

C-KL compares pieces with pieces, which is exact where one side's tokens are made of the other's. This loss goes along
bytes instead, so tokens may cross. It is research: a definition and its facts, no fast form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Literal

import numpy as np
import torch
from slow_divergence import Measure
from slow_parts import Batch, chunks_of, log_mass, stack, zero
from torch import Tensor

from xtoken_align.errors import OptionError
from xtoken_align.losses import options as checks
from xtoken_align.mapping.mapping import Mapping
from xtoken_align.spans.spans import Spans
from xtoken_align.vocab.kinds import Kind
from xtoken_align.vocab.vocab import Vocab

Symbols = tuple[int, ...]
"""Bytes, and one number from 256 on for each special token; paired specials share a number."""

Tokens = tuple[int, ...]

Test = Literal["pairs", "whole"]

DEEPEST = 5
"""Symbols after which an undecided string counts as unknown."""


class Spelling:
    """How one side writes.

    Args:
        vocab: its tokens, and its encoder.
        specials: the symbol of each special token.
        test: what tells a side's own way of writing from others. `whole` encodes all tokens again; `pairs` encodes
            every two neighbours: encode(s + s') == (s, s'). A BPE's tokens are its own exactly if all pairs are.
    """

    def __init__(self, vocab: Vocab, specials: dict[int, int], test: Test) -> None:
        checks.check_one_of("test", test, ("pairs", "whole"))
        self.vocab, self.specials, self.test = vocab, specials, test
        self.symbols: dict[int, Symbols] = {}
        for token, kind in enumerate(vocab.kinds.tolist()):
            if token in specials:
                self.symbols[token] = (specials[token],)
            elif kind in {Kind.TEXT, Kind.BYTE} and vocab.surfaces[token]:
                self.symbols[token] = tuple(vocab.surfaces[token])
        self._encoded: dict[bytes, Tokens | None] = {}

    def writes(self, tokens: Tokens) -> bool:
        """Whether a side that writes the tokens before the last one may write the last one after them."""
        if self.test == "pairs":
            return tokens[-1] in self.specials or len(tokens) < 2 or self._own(tokens[-2:])
        return self._own(tokens)

    def _own(self, tokens: Tokens) -> bool:
        begin = max((at + 1 for at, token in enumerate(tokens) if token in self.specials), default=0)
        run = tokens[begin:]
        encoded = self._encode(b"".join(bytes(self.symbols[token]) for token in run))
        return encoded is None or encoded == run

    def _encode(self, data: bytes) -> Tokens | None:
        """Ids, or None for bytes that are no text: they cannot be tested, and count as written so."""
        if data not in self._encoded:
            try:
                self._encoded[data] = tuple(self.vocab.encode_batch([data.decode()])[0])
            except UnicodeDecodeError:
                self._encoded[data] = None
        return self._encoded[data]

    def covers(self, text: Symbols, before: Tokens = (), at: int = 0) -> Iterator[Tokens]:
        """The ways to write a text that begins so; the last token may go beyond it.

        Args:
            text: symbols.
            before: tokens already written.
            at: how many symbols they are.
        """
        if at >= len(text):
            yield before
            return
        for token, symbols in self.symbols.items():
            rest = text[at : at + len(symbols)]
            if symbols[: len(rest)] == rest and self.writes((*before, token)):
                yield from self.covers(text, (*before, token), at + len(symbols))


@dataclass(frozen=True)
class Mass:
    """What is known of a probability.

    Attributes:
        inside: of the strings in an event, or None.
        outside: of the others, or None.
    """

    inside: float | None
    outside: float | None


class Row:
    """One text of the batch, both sides' tokens of the same symbols.

    Args:
        student: ids.
        teacher: ids.
        rows: float64 (T, V_t), the teacher's probabilities at each position.
        spellings: how the student writes, and how the teacher does.
        following: `ExactKL._following`.
    """

    def __init__(
        self,
        student: Tokens,
        teacher: Tokens,
        rows: Tensor,
        spellings: tuple[Spelling, Spelling],
        following: Callable[[Tokens, Symbols], tuple[frozenset[int], bool]],
    ) -> None:
        self.student, self.teacher, self.rows = student, teacher, rows
        self.writer, self.reader = spellings
        self.following = following
        self.text = tuple(symbol for token in student for symbol in self.writer.symbols[token])
        self.known: dict[Symbols, float | None] = {}

    @cached_property
    def starts(self) -> list[int]:
        """Where each teacher token begins, and where the last one ends."""
        return np.cumsum([0, *(len(self.reader.symbols[token]) for token in self.teacher)]).tolist()

    def probability(self, text: Symbols) -> float | None:
        """P(the teacher's strings begin so), by their covers; None where a cover needs a row that is not there.

        A cover is the text's own tokens t_1 .. t_(j-1) and one token y that reaches the end, and its probability
        stands in the rows. A way of writing that leaves the text's own tokens earlier needs rows of another text: if
        the teacher may write so, the sum is unknown.
        """
        if text not in self.known:
            total, way = 0.0, 1.0
            for number, token in enumerate(self.teacher):
                begin = self.starts[number]
                if begin >= len(text) or self.text[:begin] != text[:begin]:
                    break
                total += way * self._last_from(number, text, begin)
                # Nothing predicts the first token: it is certain.
                way *= float(self.rows[number - 1, token]) if number else 1.0
            self.known[text] = None if np.isnan(total) else total
        return self.known[text]

    def _last_from(self, number: int, text: Symbols, begin: int) -> float:
        """The probability that the teacher reaches the text's end with the token after its first ones; NaN: unknown."""
        total = 0.0
        for token, symbols in self.reader.symbols.items():
            rest = text[begin : begin + len(symbols)]
            if symbols[: len(rest)] != rest:
                continue
            own = token == self.teacher[number]
            if begin + len(symbols) >= len(text) and (number or own):
                total += float(self.rows[number - 1, token]) if number else 1.0
            elif not own and self._may_leave((*self.teacher[:number], token), text, begin + len(symbols)):
                return float("nan")
        return total

    def _may_leave(self, tokens: Tokens, text: Symbols, at: int) -> bool:
        return self.reader.writes(tokens) and next(self.reader.covers(text, tokens, at), None) is not None

    def mass(self, before: Tokens, allowed: frozenset[int], text: Symbols, deepest: int) -> Mass:
        """P(the student writes `before` and then an allowed token), among the strings that begin so, and the rest.

        Where every string that begins so is in the event, or none, the string's own probability decides. Else each
        next symbol is asked; what is unknown of one side may be known as the whole without the other.
        """
        following, otherwise = self.following(before, text)
        inside, outside = bool(following & allowed), otherwise or bool(following - allowed)
        whole = self.probability(text)
        if not inside:
            return Mass(0.0, whole)
        if not outside:
            return Mass(whole, 0.0)
        if deepest == 0:
            return Mass(None, None)
        parts = [self.mass(before, allowed, (*text, symbol), deepest - 1) for symbol in self.alphabet]
        sums = [
            None if None in column else sum(column)
            for column in ([part.inside for part in parts], [part.outside for part in parts])
        ]
        if whole is not None and None in sums and sums != [None, None]:
            known = sums[0] if sums[1] is None else sums[1]
            sums = [whole - known if one is None else one for one in sums]
        return Mass(*sums)

    @cached_property
    def alphabet(self) -> list[int]:
        """The symbols that the teacher can write."""
        return sorted({symbol for symbols in self.reader.symbols.values() for symbol in symbols})


@dataclass(frozen=True, eq=False)
class Comparison:
    """One (c, u).

    Attributes:
        position: of the student's logits.
        teacher: float64 (K,), log pi_o.
        tokens: the student's tokens A(o).
    """

    position: int
    teacher: Tensor
    tokens: list[list[int]]


class ExactKL:
    """Path-exact KL (2026).

    For every student token of the text with the student's tokens c before it, along its bytes u = empty .. whole: the
    outcomes o are the next byte, or END. A(o) are the student's tokens that begin with u and that byte, or that are u.

        sum over (c, u) of D(pi_o / sum_K pi || p_S(A(o) | c) / sum_K p_S(A(.) | c))  over o in K

    pi_o = P(the student's text begins c and then a token of A(o)) under the teacher, by the covers of byte strings
    (Phan et al., arXiv:2410.09303, 2024); K are the outcomes whose pi_o follows from the teacher's rows on the text's
    path alone. The others are one more outcome, if the sum over all is known: without it the loss would not see, where
    the teacher packs, how a token ends (alone, it ended 0.027 nats a letter from such a teacher).

    A string counts for o if the student, who writes its own way, would write c and then a token of A(o).

    Where both sides' strings nest, this is C-KL with END and level_weight="text" regrouped by bytes. It is 0 for a
    student that is perfect by tokens, whatever the text, also where tokens cross.

    Args:
        student: its vocabulary and encoder.
        teacher: the same.
        mapping: which special tokens are pairs (by rule); an unpaired one is a symbol of its own.
        measure: how outcomes are compared.
        test: see `Spelling`.
    """

    def __init__(
        self, student: Vocab, teacher: Vocab, mapping: Mapping, measure: Measure | None = None, *, test: Test = "pairs"
    ) -> None:
        self.measure = measure or Measure()
        rows, columns = mapping.matrix.rows.tolist(), mapping.matrix.indices.tolist()
        partners = dict(zip(rows, columns, strict=True))
        specials = [np.flatnonzero(np.asarray(side.kinds) == Kind.SPECIAL).tolist() for side in (student, teacher)]
        ours = {token: 256 + partners.get(token, len(teacher) + token) for token in specials[0]}
        self.student = Spelling(student, ours, test)
        self.teacher = Spelling(teacher, {token: 256 + token for token in specials[1]}, test)
        self.following = cache(self._following)

    def _following(self, before: Tokens, text: Symbols) -> tuple[frozenset[int], bool]:
        """What the student may write after its tokens before, in strings that begin so; and whether it may not."""
        following, otherwise = set(), False
        for tokens in self.student.covers(text):
            if tokens[: len(before)] == before and len(tokens) > len(before):
                following.add(tokens[len(before)])
            elif tokens == before:
                # The text ends where these tokens do, so whatever may follow is still open.
                following |= {token for token in self.student.symbols if self.student.writes((*tokens, token))}
            else:
                otherwise = True
        return frozenset(following), otherwise

    def outcomes(self, row: Row, number: int) -> Iterator[tuple[list[float], list[list[int]], int, int]]:
        """Along a student token: pi_o, the student's tokens of each, how many were known, and how many there are."""
        before, own = row.student[:number], self.student.symbols[row.student[number]]
        begin = sum(len(self.student.symbols[token]) for token in before)
        for size in range(len(own) + 1):
            by_next: dict[int, list[int]] = {}
            for token, symbols in self.student.symbols.items():
                if symbols[:size] == own[:size]:
                    by_next.setdefault(symbols[size] if len(symbols) > size else -1, []).append(token)
            if len(by_next) < 2:
                continue
            text = (*row.text[:begin], *own[:size])
            found, unknown = [], []
            for symbol, tokens in by_next.items():
                longer = (*text, symbol) if symbol >= 0 else text
                inside = row.mass(before, frozenset(tokens), longer, DEEPEST).inside
                if inside is None:
                    unknown += tokens
                else:
                    found.append((max(inside, 0.0), tokens))
            known = len(found)
            if unknown:
                every = frozenset(token for tokens in by_next.values() for token in tokens)
                whole = row.mass(before, every, text, DEEPEST).inside
                if whole is not None:
                    found.append((max(whole - sum(mass for mass, _ in found), 0.0), unknown))
            yield [mass for mass, _ in found], [tokens for _, tokens in found], known, len(by_next)

    def comparisons(self, batch: Batch, spans: Spans) -> tuple[list[list[Comparison]], float]:
        """What each chunk compares, constants of the student, and the share of outcomes that are known."""
        spans = spans.numpy()
        widths = spans.student.shape[1], spans.teacher.shape[1]
        rows = [self._row(batch, spans, number, widths[1]) for number in range(len(spans.count))]
        made, known, count = [], 0, 0
        for chunk in chunks_of(spans):
            made.append([])
            for position in chunk.student:
                number, at = divmod(position, widths[0])
                for masses, tokens, fixed, outcomes in self.outcomes(rows[number], at + 1):
                    made[-1].append(Comparison(position, torch.tensor(masses, dtype=torch.float64).log(), tokens))
                    known, count = known + fixed, count + outcomes
        return made, known / max(count, 1)

    def value(self, batch: Batch, comparisons: list[Comparison]) -> Tensor:
        """A chunk's value: the sum of its comparisons."""
        total = zero()
        for one in comparisons:
            student = batch.student(one.position)
            total = total + self.measure(one.teacher, stack(log_mass(student, ids) for ids in one.tokens))
        return total

    def _row(self, batch: Batch, spans: Spans, number: int, width: int) -> Row:
        student = tuple(spans.student_ids[number][spans.student_mask[number]].tolist())
        teacher = tuple(spans.teacher_ids[number][spans.teacher_mask[number]].tolist())
        ours, theirs = (
            tuple(symbol for token in tokens for symbol in spelling.symbols.get(token, (-1,)))
            for tokens, spelling in ((student, self.student), (teacher, self.teacher))
        )
        if ours != theirs or -1 in ours:
            raise OptionError(f"exact needs rows in which both sides write the same bytes, but row {number} is not one")
        rows = torch.stack([batch.teacher(number * width + at).log_probs for at in range(len(teacher))]).exp()
        return Row(student, teacher, rows, (self.student, self.teacher), self.following)


def slow_exact(
    student: Vocab,
    teacher: Vocab,
    mapping: Mapping,
    student_logits: Tensor,
    teacher_logits: Tensor,
    spans: Spans,
    *,
    measure: Measure | None = None,
    test: Test = "pairs",
) -> tuple[Tensor, float]:
    """Each chunk's path-exact KL with the student's graph, and the share of outcomes that the rows fixed.

    Args:
        student: vocabulary with its encoder.
        teacher: the same.
        mapping: which specials are pairs.
        student_logits: floats (B, T_s, V_s).
        teacher_logits: floats (B, T_t, V_t).
        spans: the batch's chunks; each row is one document that both sides write with the same bytes.
        measure: how outcomes are compared, by default a forward KL.
        test: how a side's own way of writing is known.

    Returns:
        float64 (N,), and a number from 0 to 1.

    Raises:
        OptionError: the two sides of a row differ in bytes.
    """
    batch = Batch.of(mapping, student_logits, teacher_logits)
    loss = ExactKL(student, teacher, mapping, measure, test=test)
    comparisons, known = loss.comparisons(batch, spans)
    return stack(loss.value(batch, chunk) for chunk in comparisons), known
