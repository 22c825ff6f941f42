"""A collator for data loaders: rows of a data set to student and teacher ids, masks, positions, labels and spans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MissingExtraError, OptionError
from ..read import as_vocab
from ..vocab.vocab import Vocab
from .align_chats import aligned_chats
from .align_texts import aligned_texts
from .chat_render import Template, renderer
from .columns import aligned_columns
from .encode import Edges
from .layout import in_rows, packed
from .make import Aligned, make_spans
from .spans import Spans
from .tables import PairTables, pair_tables
from .units import End, check_side

IGNORED = -100
"""The label that PyTorch's cross-entropy ignores (`torch.nn.CrossEntropyLoss`, `ignore_index`)."""


@dataclass(frozen=True, kw_only=True)
class SpanCollator:
    """Makes batches for distillation from rows of a data set.

    A row has one of

    - `text`: a text, encoded by both sides;
    - `messages`: a chat, rendered by each side's template and encoded;
    - `student_ids` and `teacher_ids`: ids, aligned here; with `student_chunks` and `teacher_chunks` (what
      `AlignColumns` adds to a data set) they are aligned already. `student_loss_mask` and `teacher_loss_mask` say which
      tokens count.

    A batch has, as torch tensors, `student_input_ids`, `student_attention_mask`, `student_position_ids` and the
    same of the teacher, all (B, T); `labels` (B, T_s), the student's ids where they count and -100 elsewhere and
    where a document begins; and `spans`. In packed rows positions begin anew with every document: an attention that
    does not look at them needs `block_mask(spans.student_segments)`.

    Args:
        student: the student's `Vocab`, or a source of it. Workers that are spawned, not forked, need a source.
        teacher: the teacher's.
        bos: for texts, put the token that begins a text before each.
        eos: for texts, put the token that ends a text after each.
        max_student_tokens: cut to so many tokens; with `pack` the most in a row.
        max_teacher_tokens: the same of the teacher.
        truncation_side: where to cut, `left` or `right`.
        padding_side: where rows are padded, `left` or `right`.
        pad_to_multiple_of: row lengths become a multiple of this.
        pack: put several documents into a row, in lockstep on both sides.
        student_template: for chats; see `align_chats`.
        teacher_template: the same of the teacher.
        template_options: further variables of both Jinja templates.
        loss_roles: whose messages count in the loss.

    Raises:
        OptionError: an option has a value that makes no sense.
    """

    student: Any
    teacher: Any
    bos: bool = True
    eos: bool = True
    max_student_tokens: int | None = None
    max_teacher_tokens: int | None = None
    truncation_side: End = "right"
    padding_side: End = "right"
    pad_to_multiple_of: int = 1
    pack: bool = False
    student_template: Template | None = None
    teacher_template: Template | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)
    loss_roles: Sequence[str] = ("assistant",)

    def __post_init__(self) -> None:
        check_side("truncation_side", self.truncation_side)
        check_side("padding_side", self.padding_side)
        if self.pad_to_multiple_of < 1:
            raise OptionError(f"pad_to_multiple_of is a positive number, got {self.pad_to_multiple_of}")
        if self.pack and (self.max_student_tokens is None or self.max_teacher_tokens is None):
            raise OptionError("packed rows need max_student_tokens and max_teacher_tokens")
        assert self._vocabs  # a source that cannot be read is refused now, not by a worker

    @cached_property
    def _vocabs(self) -> tuple[Vocab, Vocab]:
        return as_vocab(self.student), as_vocab(self.teacher)

    def __getstate__(self) -> dict[str, Any]:
        # Vocabularies cannot be pickled; a copy in another process reads its sources again.
        return {name: value for name, value in vars(self).items() if name != "_vocabs"}

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Makes a batch.

        Args:
            rows: rows of a data set.

        Raises:
            OptionError: a row has none of the forms above, or not that of the first row.
            MissingExtraError: torch is not installed.
        """
        spans = self.spans(rows)
        arrays: dict[str, NDArray[Any]] = {}
        for side, vocab in zip(("student", "teacher"), self._vocabs, strict=True):
            mask = getattr(spans, f"{side}_mask")
            arrays[f"{side}_input_ids"] = np.where(mask, getattr(spans, f"{side}_ids"), _pad_id(vocab))
            arrays[f"{side}_attention_mask"] = mask.astype(np.int64)
            arrays[f"{side}_position_ids"] = positions(getattr(spans, f"{side}_segments"))
        # Nothing in its document predicts a document's first token.
        counted = spans.student_loss_mask & (arrays["student_position_ids"] > 0)
        arrays["labels"] = np.where(counted, spans.student_ids, IGNORED)
        try:
            from torch import from_numpy
        except ImportError as error:
            raise MissingExtraError("A batch of tensors", "torch") from error
        return {**{name: from_numpy(array) for name, array in arrays.items()}, "spans": spans.torch()}

    def spans(self, rows: Sequence[Mapping[str, Any]]) -> Spans:
        """The spans of a batch, as numpy arrays."""
        made = self._aligned(rows, pair_tables(*self._vocabs))
        if not self.pack:
            return make_spans(in_rows(made, padding_side=self.padding_side, multiple=self.pad_to_multiple_of))
        assert self.max_student_tokens is not None
        assert self.max_teacher_tokens is not None
        return make_spans(
            packed(
                made,
                max_student_tokens=self.max_student_tokens,
                max_teacher_tokens=self.max_teacher_tokens,
                padding_side=self.padding_side,
                multiple=self.pad_to_multiple_of,
            )
        )

    def _aligned(self, rows: Sequence[Mapping[str, Any]], tables: PairTables) -> Aligned:
        limits = (self.max_student_tokens, self.max_teacher_tokens)
        form = next((name for name in ("student_ids", "messages", "text") if rows and name in rows[0]), None)
        if form is None or any(form not in row for row in rows):
            raise OptionError(
                "rows need a `text`, `messages`, or `student_ids` and `teacher_ids`, all rows of a batch the same; "
                f"got {sorted(rows[0]) if rows else 'no rows'}"
            )
        if form == "text":
            edges = Edges(bos=self.bos, eos=self.eos, truncation_side=self.truncation_side)
            return aligned_texts([row["text"] for row in rows], tables, edges, limits)
        if form == "messages":
            renders = (
                renderer(tables.student, self.student_template, "student", self.template_options),
                renderer(tables.teacher, self.teacher_template, "teacher", self.template_options),
            )
            chats = [row["messages"] for row in rows]
            return aligned_chats(chats, tables, renders, self.loss_roles, limits, self.truncation_side)
        return aligned_columns(rows, tables, limits, self.truncation_side)


def _pad_id(vocab: Vocab) -> int:
    """What fills rows up: masks say that it is no token."""
    return next((vocab.roles[role][0] for role in ("pad", "eos", "eot") if role in vocab.roles), 0)


def positions(segments: NDArray[np.int32]) -> NDArray[np.int64]:
    """int64 (B, T), each token's position in its document; 0 at padding.

    >>> positions(np.array([[0, 0, 0, 1, 1, -1]])).tolist()
    [[0, 1, 2, 0, 1, 0]]
    """
    columns = np.arange(segments.shape[1])
    begins = np.ones(segments.shape, dtype=np.bool_)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    first = np.maximum.accumulate(np.where(begins, columns, 0), axis=1)
    made: NDArray[np.int64] = np.where(segments >= 0, columns - first, 0)
    return made


def block_mask(segments: Any) -> Any:
    """Which tokens a token may look at in a packed row: those of its own document up to itself.

    Args:
        segments: int (B, T) array or tensor, as in `Spans`; negative at padding.

    Returns:
        bool (B, 1, T, T), True where the token of the third axis may look at that of the fourth; padding looks at
        itself alone, since a row of nothing but False gives NaN in a softmax.
    """
    rows, columns = segments[:, :, None], segments[:, None, :]
    steps = range(segments.shape[1])
    order = segments.new_tensor(list(steps)) if hasattr(segments, "new_tensor") else np.asarray(steps)
    causal = order[:, None] >= order[None, :]
    own = order[:, None] == order[None, :]
    return (((rows == columns) & (rows >= 0) & causal) | own)[:, None]
