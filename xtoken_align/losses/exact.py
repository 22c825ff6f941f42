"""Path-exact KL, a research form: every outcome of the student whose probability the teacher's rows on the text's path
fix, byte by byte.

C-KL compares pieces with pieces, which is exact where one side's tokens are made of the other's; here tokens may cross.
It is slow: planned in Python, chunk by chunk.

A side's ways of writing a text that begins so, its *covers* (Phan et al., arXiv:2410.09303, 2024), are its own way of
writing a beginning of that text, and one more token that reaches the end or goes beyond it. Say a side has a, b, ab, bc
and the text so far is `ab`: its covers are `ab` and, if the side writes a and bc side by side, `a` `bc`.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import MismatchError, OptionError
from ..mapping.mapping import Mapping
from ..spans.spans import Predictions, Spans
from ..vocab.kinds import Kind
from ..vocab.vocab import Vocab
from .divergence import Measure, compare_segments, normalised_segments
from .inputs import Gradients, Source, compute_dtype, new_gradients
from .options import check_share

Ids = NDArray[np.int64]

Symbols = tuple[int, ...]
"""Bytes, and one number from 256 on for each special token; paired specials share a number."""

Range = tuple[int, int]
"""Tokens in the order of their symbols, from the first to before the last."""

DEEPEST = 5
"""Symbols after which a string that still decides nothing counts as unknown."""

_KEPT_ROWS = 64
"""Of the teacher's rows, those that were read last."""

_TOKENS_BACK = 8
"""Own tokens before a place at which another way of writing may begin that has not come back to them there."""


class Writer:
    """How one side writes, by its tokens in the order of their symbols.

    Args:
        vocab: its tokens, and its encoder.
        specials: the symbol of each special token.
    """

    def __init__(self, vocab: Vocab, specials: dict[int, int]) -> None:
        self.vocab, self.specials = vocab, specials
        self.symbols: dict[int, Symbols] = {}
        for token, kind in enumerate(vocab.kinds.tolist()):
            if token in specials:
                self.symbols[token] = (specials[token],)
            elif kind in {Kind.TEXT, Kind.BYTE} and vocab.surfaces[token]:
                self.symbols[token] = tuple(vocab.surfaces[token])
        order = sorted(self.symbols, key=lambda token: (self.symbols[token], token))
        self.tokens = np.array(order, dtype=np.int64)
        self.keys = [self.symbols[token] for token in order]
        self.place = {token: at for at, token in enumerate(order)}
        self.longest = max(map(len, self.keys), default=0)
        self._ranges: dict[Symbols, Range] = {(): (0, len(order))}
        self._pairs: dict[tuple[int, int], bool] = {}
        self._groups: dict[Symbols, list[tuple[int, Range]]] = {}

    def beginning(self, text: Symbols) -> Range:
        """The tokens that begin with these symbols, those that are equal to them first."""
        if text not in self._ranges:
            low, high = self.beginning(text[:-1]) if len(text) <= self.longest else (0, 0)
            first = bisect_left(self.keys, text, low, high)
            self._ranges[text] = first, bisect_left(self.keys, (*text[:-1], text[-1] + 1), first, high)
        return self._ranges[text]

    def equal(self, text: Symbols) -> list[int]:
        """The tokens that are these symbols."""
        low, high = self.beginning(text)
        found = []
        while low < high and self.keys[low] == text:
            found.append(int(self.tokens[low]))
            low += 1
        return found

    def within(self, text: Symbols, at: int) -> Iterator[tuple[int, int]]:
        """Tokens that stand in a text from a place on and end before its end: where each ends, and its id."""
        for end in range(at + 1, len(text)):
            low, high = self.beginning(text[at:end])
            if low == high:
                return
            yield from ((end, token) for token in self.equal(text[at:end]))

    def groups(self, text: Symbols) -> list[tuple[int, Range]]:
        """The tokens that begin with these symbols by their next one, -1 for those that end here."""
        if text not in self._groups:
            low, high = self.beginning(text)
            found = []
            while low < high:
                key = self.keys[low]
                symbol = key[len(text)] if len(key) > len(text) else -1
                end = self.beginning((*text, symbol))[1] if symbol >= 0 else low + len(self.equal(text))
                found.append((symbol, (low, end)))
                low = end
            self._groups[text] = found
        return self._groups[text]

    def writes(self, before: int | None, token: int) -> bool:
        """Whether the side may write a token after another: a BPE's tokens are its own exactly if all pairs are."""
        if before is None or token in self.specials:
            return True
        if (before, token) not in self._pairs:
            run = (token,) if before in self.specials else (before, token)
            data = b"".join(bytes(self.symbols[one]) for one in run)
            try:
                self._pairs[before, token] = tuple(self.vocab.encode_batch([data.decode()])[0]) == run
            except UnicodeDecodeError:
                # Bytes that are no text cannot be tested, and count as written so.
                self._pairs[before, token] = True
        return self._pairs[before, token]

    def writes_some(self, before: int | None, *ranges: Range) -> bool:
        """Whether the side may write one of these tokens after another."""
        return any(self.writes(before, token) for low, high in ranges for token in self.tokens[low:high].tolist())

    def goes_on(self, before: int | None, text: Symbols, at: int) -> bool:
        """Whether the side may write the rest of a text after a token that ends at a place, or go beyond its end."""
        if at >= len(text) or self.writes_some(before, self.beginning(text[at:])):
            return True
        return any(
            self.writes(before, token) and self.goes_on(token, text, end) for end, token in self.within(text, at)
        )


class Path:
    """One side's own tokens of a row, and where it may have written the row's text otherwise.

    Args:
        writer: the side.
        tokens: its ids.
    """

    def __init__(self, writer: Writer, tokens: Sequence[int]) -> None:
        self.writer, self.tokens = writer, list(tokens)
        self.text: Symbols = tuple(symbol for token in tokens for symbol in writer.symbols.get(token, (-1,)))
        self.starts = [0, *accumulate(len(writer.symbols.get(token, (-1,))) for token in tokens)]
        self.number_at = {start: number for number, start in enumerate(self.starts)}

    @cached_property
    def others(self) -> list[set[int]]:
        """At each place the last tokens of other ways of writing exactly the text before it."""
        found: list[set[int]] = [set() for _ in range(len(self.text) + 1)]
        open_ended = (*self.text, -2)
        for at in range(len(self.text)):
            for end, token in self.writer.within(open_ended, at):
                if self._leads(found[at], self.number_at.get(at), token):
                    found[end].add(token)
        return found

    def before(self, number: int) -> int | None:
        """The own token before the one with this number."""
        return self.tokens[number - 1] if number else None

    def _leads(self, others: set[int], number: int | None, token: int) -> bool:
        """Whether a token may follow another way of writing, or leaves the side's own one at its token `number`."""
        if any(self.writer.writes(before, token) for before in others):
            return True
        if number is None or number >= len(self.tokens) or token == self.tokens[number]:
            return False
        return self.writer.writes(self.before(number), token)

    def others_of(self, text: Symbols, number: int) -> tuple[bool, bool]:
        """Whether the side may write a text that begins so otherwise than by its own first `number` tokens.

        Args:
            text: symbols, as the row's as far as its first `number` tokens go.
            number: of tokens.

        Returns:
            Whether by a token that leaves the own ones and reaches the end; and whether by one from which more follow,
            or by one in place of the row's first.
        """
        begin, size, longest = self.starts[number], len(text), self.writer.longest
        states: dict[int, set[int]] = {}
        by_one, by_more = False, size <= begin and bool(self.others[size])
        for at in range(max(min(begin, size) - longest, 0), size):
            here = self.others[at] if at <= begin else states.get(at, set())
            own = self.number_at.get(at) if at < begin else None
            for end, token in self.writer.within(text, at):
                if end > begin and self._leads(here, own, token):
                    states.setdefault(end, set()).add(token)
            low, high = self.writer.beginning(text[at:])
            by_more = by_more or any(self.writer.writes_some(before, (low, high)) for before in here)
            if own is not None:
                leaving = any(
                    token != self.tokens[own] and self.writer.writes(self.before(own), token)
                    for token in self.writer.tokens[low:high].tolist()
                )
                by_one, by_more = by_one or leaving, by_more or (leaving and own == 0)
        return by_one, by_more


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
    """One text of a batch, both sides' tokens of the same symbols.

    Args:
        student: the student's tokens.
        teacher: the teacher's.
        probabilities: of the teacher's tokens after its first n ones, in the order of their symbols.
        alphabet: the symbols that the teacher can write.
        tolerance: the share of a mass that may be left out, see `ExactPaths`.
    """

    def __init__(
        self,
        student: Path,
        teacher: Path,
        probabilities: Callable[[int], NDArray[np.float64]],
        alphabet: list[int],
        tolerance: float,
    ) -> None:
        self.student, self.teacher, self.alphabet, self.tolerance = student, teacher, alphabet, tolerance
        self._scale = 1.0
        self._read = probabilities
        self._rows: OrderedDict[int, NDArray[np.float64]] = OrderedDict()
        self._start, self._base = 0, 0
        self._known: dict[Symbols, float | None] = {}
        self._followed: dict[Symbols, tuple[Range, list[int], bool]] = {}

    def after(self, number: int) -> NDArray[np.float64]:
        """The teacher's probabilities after its first `number` tokens."""
        if number not in self._rows:
            self._rows[number] = self._read(number)
            if len(self._rows) > _KEPT_ROWS:
                self._rows.popitem(last=False)
        return self._rows[number]

    def go_to(self, number: int) -> None:
        """Asks about what follows the student's first `number` tokens from now on.

        Probabilities are relative to the teacher's first token from which a cover of what comes can reach beyond them:
        those of whole texts would be too small.
        """
        self._start, self._known, self._followed = number, {}, {}
        begin, teacher = self.student.starts[number], self.teacher
        self._base = bisect_left(teacher.starts, begin - teacher.writer.longest)
        while teacher.starts[self._base] < begin:
            low, high = teacher.writer.beginning(teacher.text[teacher.starts[self._base] : begin])
            if low < high:
                break
            self._base += 1

    def probability(self, text: Symbols) -> float | None:
        """How likely the teacher writes a text that begins so, relative to a constant; None if its rows do not say.

        A cover is the text's own tokens t_1 .. t_(j-1) and one token y that reaches the end: its probability stands in
        the rows. A way of writing that leaves the own tokens earlier needs rows of another text: if the teacher may
        write so, the sum is unknown.
        """
        if text not in self._known:
            self._known[text] = self._sum_of_covers(text)
        return self._known[text]

    def _sum_of_covers(self, text: Symbols) -> float | None:
        teacher = self.teacher
        # How far the text is the row's own: as far as that the teacher's own tokens are a way to write it.
        same = next((at for at, (one, other) in enumerate(zip(text, teacher.text, strict=False)) if one != other), None)
        same = min(len(text), len(teacher.text)) if same is None else same
        last = max(number for number, start in enumerate(teacher.starts) if start <= same)
        # A token that leaves the own ones from the last of them on reaches the end, or is the first of several.
        own = max(last if teacher.starts[last] < len(text) else last - 1, 0)
        if not self.tolerance and (teacher.others_of(text, own)[1] or self._leaves(text, own)):
            return None
        total, way = 0.0, 1.0
        for number in range(self._base, len(teacher.tokens)):
            begin = teacher.starts[number]
            if begin >= len(text) or begin > same:
                break
            low, high = teacher.writer.beginning(text[begin:])
            if number:
                total += way * float(self.after(number)[low:high].sum())
                way *= self._of_token(number)
            else:
                # Nothing predicts the first token: it is certain.
                total += float(teacher.tokens[0] in teacher.writer.tokens[low:high])
        return None if self.tolerance and self._mass_that_leaves(text, own) > self.tolerance * total else total

    def _mass_that_leaves(self, text: Symbols, last: int) -> float:
        """At most how likely the teacher writes such a text in a way that leaves its own tokens by one that ends before
        the text does: the sum of these tokens' probabilities, which stand in the rows.
        """
        writer, total, way = self.teacher.writer, 0.0, 1.0
        ways = {self._base: 1.0}
        for number in range(self._base, last):
            ways[number + 1] = way = way * (self._of_token(number) if number else 1.0)
        way = 1.0
        for number in range(self._base - 1, max(self._base - _TOKENS_BACK, 0) - 1, -1):
            way /= max(self._of_token(number) if number else 1.0, sys.float_info.min)
            ways[number] = way
        for number, way in ways.items():
            if number > last or number >= len(self.teacher.tokens):
                continue
            if number == 0:
                total += float(self._leaves(text, 0))
                continue
            before, own = self.teacher.before(number), self.teacher.tokens[number]
            for end, token in writer.within(text, self.teacher.starts[number]):
                mass = 0.0 if token == own else way * float(self.after(number)[writer.place[token]])
                # What is hardly ever said need not be tested.
                if mass > self.tolerance * self._scale * 1e-3:
                    mass *= writer.writes(before, token) and writer.goes_on(token, text, end)
                total += mass
        return total

    def _of_token(self, number: int) -> float:
        """The probability of the teacher's own token."""
        return float(self.after(number)[self.teacher.writer.place[self.teacher.tokens[number]]])

    def _leaves(self, text: Symbols, number: int) -> bool:
        """Whether the teacher may leave its own tokens at `number` by a token that does not reach the end."""
        teacher, begin = self.teacher, self.teacher.starts[number]
        if number >= len(teacher.tokens):
            return False
        writer, before, own = teacher.writer, teacher.before(number), teacher.tokens[number]
        if number == 0:
            low, high = writer.beginning(text[begin:])
            if any(token != own for token in writer.tokens[low:high].tolist()):
                return True
        return any(
            token != own and writer.writes(before, token) and writer.goes_on(token, text, end)
            for end, token in writer.within(text, begin)
        )

    def following(self, text: Symbols) -> tuple[Range, list[int], bool]:
        """What the student may write next in texts that begin so.

        Returns:
            The tokens that reach the text's end, of which only those count that it writes after the one before; the
            shorter ones with which it may write such a text; and whether it may not have written its first tokens.
        """
        if text not in self._followed:
            writer, number = self.student.writer, self._start
            begin, before = self.student.starts[number], self.student.before(number)
            shorter = [
                token
                for end, token in writer.within(text, begin)
                if writer.writes(before, token) and writer.goes_on(token, text, end)
            ]
            otherwise = any(self.student.others_of(text, number))
            self._followed[text] = writer.beginning(text[begin:]), shorter, otherwise
        return self._followed[text]

    def mass(self, allowed: Range, text: Symbols, deepest: int = DEEPEST) -> Mass:
        """The mass of texts that begin so and in which the student writes its first tokens and then an allowed one.

        Where every text that begins so is in the event, or none, the text's own mass decides. Else each next symbol is
        asked; what is unknown of one side may be known as the whole without the other.
        """
        whole = self.probability(text)
        if self.tolerance and (whole is None or whole <= self.tolerance * self._scale):
            return Mass(None, None) if whole is None else Mass(0.0, whole)
        reaching, shorter, otherwise = self.following(text)
        writer, before = self.student.writer, self.student.before(self._start)
        low, high = (min(max(bound, reaching[0]), reaching[1]) for bound in allowed)
        are_allowed = [allowed[0] <= writer.place[token] < allowed[1] for token in shorter]
        inside = any(are_allowed) or writer.writes_some(before, (low, high))
        outside = (
            otherwise or not all(are_allowed) or writer.writes_some(before, (reaching[0], low), (high, reaching[1]))
        )
        if not inside:
            return Mass(0.0, whole)
        if not outside:
            return Mass(whole, 0.0)
        if deepest == 0:
            return Mass(None, None)
        parts = [self.mass(allowed, (*text, symbol), deepest - 1) for symbol in self.alphabet]
        if whole is not None and self.tolerance:
            # What is unknown is what the known ones leave of the whole.
            unknown = whole - sum(self.probability((*text, symbol)) or 0.0 for symbol in self.alphabet)
            if unknown <= self.tolerance * self._scale:
                parts = [part for part in parts if part != Mass(None, None)]
        sums = [_sum([part.inside for part in parts]), _sum([part.outside for part in parts])]
        if whole is not None and None in sums and sums != [None, None]:
            known = sums[0] if sums[1] is None else sums[1]
            assert known is not None
            sums = [whole - known if one is None else one for one in sums]
        return Mass(*sums)

    def comparisons(self, number: int) -> Iterator[tuple[list[float], list[list[Range]]]]:
        """Along a student token: the teacher's masses of the outcomes, and the student's tokens of each."""
        self.go_to(number)
        writer, own = self.student.writer, self.student.writer.symbols[self.student.tokens[number]]
        for size in range(len(own) + 1):
            groups = writer.groups(own[:size])
            if len(groups) < 2:
                continue
            text = (*self.student.text[: self.student.starts[number]], *own[:size])
            if self.tolerance:
                self._scale = 0.0
                scale = self.probability(text)
                if not scale:
                    continue
                self._scale, self._known = scale, {}
            masses, tokens, unknown = [], [], []
            for symbol, which in groups:
                inside = self.mass(which, (*text, symbol) if symbol >= 0 else text).inside
                if inside is None:
                    unknown.append(which)
                else:
                    masses.append(max(inside, 0.0))
                    tokens.append([which])
            whole = self.mass(writer.beginning(own[:size]), text).inside if unknown else None
            if whole is not None:
                # What is not known apart is one more outcome: else nothing would say how a token ends.
                masses.append(max(whole - sum(masses), 0.0))
                tokens.append(unknown)
            if masses:
                yield masses, tokens


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


class ExactPaths:
    """Path-exact KL of a pair.

    For every student token of the text with the student's tokens c before it, along its bytes u = empty .. whole: the
    outcomes o are the next byte, or END. A(o) are the student's tokens that begin with u and that byte, or that are u.

        sum over (c, u) of D(pi_o / sum_K pi || p_S(A(o) | c) / sum_K p_S(A(.) | c))  over o in K

    pi_o = P(the student's text begins c and then a token of A(o)) under the teacher, by the covers of byte strings; K
    are the outcomes whose pi_o follows from the teacher's rows on the text's path alone. The others are one more
    outcome, if the sum over all is known. It is 0 for a student that is perfect by tokens, whatever the text, also
    where tokens cross; where decompositions nest it is C-KL with END and level_weight="text", regrouped by bytes.

    Args:
        student: its vocabulary with the encoder.
        teacher: the same.
        mapping: which special tokens are pairs; an unpaired one is a symbol of its own.
        tolerance: the share of a comparison's mass that may be left out. At 0 any way in which a side may write a text
            counts, however unlikely: right for small vocabularies. In large ones some strange token fits nearly
            everywhere, and only a tolerance leaves something known.

    Raises:
        MismatchError: the vocabularies are not the mapping's.

    Source: this library, 2026; covers: Phan et al. (arXiv:2410.09303, 2024).
    """

    def __init__(self, student: Vocab, teacher: Vocab, mapping: Mapping, *, tolerance: float = 0.0) -> None:
        self.tolerance = check_share("tolerance", tolerance)
        for name, vocab, side in (("student", student, mapping.student), ("teacher", teacher, mapping.teacher)):
            if vocab.fingerprint != side.fingerprint or len(vocab) != side.sizes.logits:
                raise MismatchError(
                    f"vocabs must be the mapping's, but the {name} is {vocab!r} and that of the mapping {side!r}"
                )
        partners = dict(zip(mapping.matrix.rows.tolist(), mapping.matrix.indices.tolist(), strict=True))
        ours, theirs = (np.flatnonzero(side.kinds == Kind.SPECIAL).tolist() for side in (student, teacher))
        self.student = Writer(student, {token: 256 + partners.get(token, len(teacher) + token) for token in ours})
        self.teacher = Writer(teacher, {token: 256 + token for token in theirs})
        self.alphabet = sorted({symbol for symbols in self.teacher.symbols.values() for symbol in symbols})

    def _row(self, spans: Spans, number: int, teacher: Source, silent: torch.Tensor) -> Row:
        """A row of the batch; the teacher's distributions are read when they are asked for."""
        student_ids, teacher_ids = (
            getattr(spans, f"{side}_ids")[number][getattr(spans, f"{side}_mask")[number]].tolist()
            for side in ("student", "teacher")
        )
        paths = Path(self.student, student_ids), Path(self.teacher, teacher_ids)
        if paths[0].text != paths[1].text or -1 in paths[0].text or spans.student_segments[number].max() > 0:
            raise OptionError(
                "kind='exact' needs rows of one document in which both sides write the same bytes and special tokens, "
                f"but row {number} is not one"
            )
        first = number * spans.teacher.shape[1] + int(spans.teacher_mask[number].argmax())
        order = torch.from_numpy(self.teacher.tokens).to(teacher.states.device)

        def probabilities(after: int) -> NDArray[np.float64]:
            position = torch.tensor([first + after - 1], device=teacher.states.device)
            scores = teacher.read(position, compute_dtype(teacher.states)).scores[0].double()
            numbers: NDArray[np.float64] = scores.index_fill(0, silent, -torch.inf).softmax(0)[order].numpy(force=True)
            return numbers

        return Row(*paths, probabilities, self.alphabet, self.tolerance)

    @torch.no_grad()
    def run(
        self,
        student: Source,
        teacher: Source,
        spans: Spans,
        predictions: Predictions,
        *,
        silent: tuple[torch.Tensor, torch.Tensor],
        measure: Measure,
        weight: torch.Tensor,
        wanted: Sequence[bool],
    ) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
        """Every chunk's value, and the gradient of their weighted sum.

        Args:
            student: the student's rows.
            teacher: the teacher's.
            spans: numpy arrays.
            predictions: of the spans.
            silent: both sides' tokens without a probability.
            measure: how outcomes are compared.
            weight: floats (N,), of each chunk's value in the sum.
            wanted: whether the gradient of the logits or states, of the head and of its bias is.

        Returns:
            Floats (N,), and a gradient for each input of the student, None where not wanted.
        """
        width = spans.student.shape[1]
        values = torch.zeros_like(weight)
        gradients = new_gradients(student, [], weight=wanted[1], bias=wanted[2]) if any(wanted) else None
        rows: dict[int, Row] = {}
        for chunk in range(len(predictions)):
            positions = predictions.student[predictions.student_offsets[chunk] : predictions.student_offsets[chunk + 1]]
            number = int(positions[0]) // width
            if number not in rows:
                # Chunks come row by row, and what is known of a row takes memory.
                rows = {number: self._row(spans, number, teacher, silent[1])}
            first = number * width + int(spans.student_mask[number].argmax())
            plan = [
                (place, *comparison)
                for place, position in enumerate(positions.tolist())
                for comparison in rows[number].comparisons(position - first + 1)
            ]
            values[chunk] = self._compare(plan, positions, student, silent[0], measure, weight[chunk], gradients)
        if gradients is None:
            return values, [None] * 3
        return values, [gradients.states if wanted[0] else None, gradients.weight, gradients.bias]

    def _compare(
        self,
        plan: list[tuple[int, list[float], list[list[Range]]]],
        positions: Ids,
        student: Source,
        silent: torch.Tensor,
        measure: Measure,
        weight: torch.Tensor,
        gradients: Gradients | None,
    ) -> torch.Tensor:
        """A chunk's value; its gradient is added up."""
        device = student.states.device
        place = torch.from_numpy(positions).to(device)
        scores = student.read(place, compute_dtype(student.states)).scores
        if not plan:
            return scores.new_zeros(())
        # Tokens one after the other, with the row, the outcome and the comparison of each.
        tokens, rows, outcome = [], [], []
        masses: list[float] = []
        comparison: list[int] = []
        for at, (row, found, outcomes) in enumerate(plan):
            for mass, ranges in zip(found, outcomes, strict=True):
                own = np.concatenate([self.student.tokens[low:high] for low, high in ranges])
                tokens.append(own)
                rows.append(np.full(len(own), row))
                outcome.append(np.full(len(own), len(masses)))
                masses.append(mass)
                comparison.append(at)
        arrays: list[Any] = [np.concatenate(rows), np.concatenate(tokens), np.concatenate(outcome)]
        row_of, token, segment = (torch.from_numpy(array).to(device) for array in arrays)
        log_teacher = torch.tensor(masses, dtype=torch.float64).log().to(scores)
        leaf = scores.detach().requires_grad_(gradients is not None)
        with torch.set_grad_enabled(gradients is not None):
            _, log_student = normalised_segments(
                leaf.index_fill(1, silent, -torch.inf)[row_of, token], segment, len(masses)
            )
            which = torch.tensor(comparison, device=device)
            value = compare_segments(log_teacher, log_student, which, len(plan), measure).sum()
        if gradients is not None:
            (slope,) = torch.autograd.grad(value, leaf, weight)
            gradients.add(place, scores, slope)
        return value.detach()
