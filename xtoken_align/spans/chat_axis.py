"""A rendered chat's tokens on the axis of what its messages say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..vocab.vocab import Vocab
from .chat_contents import Content, Rendered
from .chat_tokens import ChatTokens
from .covered import Placed
from .resync import Said

Numbers = NDArray[np.int64]
Flags = NDArray[np.bool_]

_TURN_ENDS = ("eot", "eos", "eom")


@dataclass(frozen=True, eq=False)
class ChatRow:
    """One chat on one side.

    Attributes:
        ids: int64 (tokens,).
        placed: the tokens on the axis of the chat's contents.
        places: int64 (tokens,), where each token stands on it.
        specials: int32 (tokens,), rows or columns of the pair's table.
        between: int64 (tokens,), the contents before and after each token, as one number.
        labelled: bool (tokens,), which count in the loss.
    """

    ids: Numbers
    placed: Placed
    places: Numbers
    specials: NDArray[np.int32]
    between: Numbers
    labelled: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Frame:
    """The regions of a rendered chat on the axis of its bytes; before them an empty one, for what precedes them all.

    Attributes:
        begins: int64 (regions + 1,), ascending.
        ends: int64 (regions + 1,).
        shift: int64 (regions + 1,), from a place in the rendered text to one on the axis of the contents.
        content: int64 (regions + 2,), the content's position; -1 before the first, and the number of contents at last.
        closes: int64 (regions + 1,), where the content ends on the axis.
        counts: bool (regions + 1,), whether the content counts in the loss.
        final: bool (regions + 1,), whether it is the last of its message.
    """

    begins: Numbers
    ends: Numbers
    shift: Numbers
    content: Numbers
    closes: Numbers
    counts: Flags
    final: Flags

    @classmethod
    def of(cls, chat: Rendered, contents: Sequence[Content], loss_roles: frozenset[str]) -> Frame:
        """The frame of a rendered chat."""
        regions = chat.regions
        sizes = [_size(content.text) for content in contents]
        bases = np.cumsum([1, *(size + 1 for size in sizes)])
        begins = [_size(chat.text[: region.begin]) for region in regions]
        skipped = [_size(contents[region.content].text[: region.skipped]) for region in regions]
        own = [contents[region.content] for region in regions]
        return cls(
            begins=np.array([0, *begins]),
            ends=np.array([0, *(_size(chat.text[: region.end]) for region in regions)]),
            shift=np.array(
                [0, *(bases[r.content] + skip - at for r, skip, at in zip(regions, skipped, begins, strict=True))]
            ),
            content=np.array([-1, *(region.content for region in regions), len(contents)]),
            closes=np.array([0, *(bases[region.content] + sizes[region.content] for region in regions)]),
            counts=np.array([False, *(content.role in loss_roles for content in own)]),
            final=np.array(
                [
                    False,
                    *(
                        region.content + 1 == len(contents)
                        or contents[region.content + 1].message != contents[region.content].message
                        for region in regions
                    ),
                ]
            ),
        )


def on_contents(tokens: ChatTokens, frame: Frame, vocab: Vocab) -> ChatRow:
    """Puts a chat's tokens on the axis of its contents, which has a step of one between two contents."""
    said = tokens.said
    begin = said.begin
    if vocab.encoder.dummy_prefix:
        begin = _without_dummy_prefix(said, frame)
    region = frame.begins.searchsorted(begin, side="right") - 1
    inside = (said.end <= frame.ends[region]) & said.speaks
    at, end = begin + frame.shift[region], said.end + frame.shift[region]
    placed = Placed(
        begin=np.where(inside & said.sharp_begin, at, -1),
        end=np.where(inside & said.sharp_end, end, -1),
        cover=np.where(inside, end - at, 0),
        on_axis=inside,
    )
    # What stands between two contents stands at the end of the one before.
    passed = np.maximum(frame.begins.searchsorted(begin) - 1, 0)
    return ChatRow(
        ids=tokens.ids,
        placed=placed,
        places=np.where(inside, at, frame.closes[passed]),
        specials=said.specials,
        between=frame.content[passed] * (frame.content[-1] + 2) + frame.content[passed + 1],
        labelled=(inside & frame.counts[region]) | _ends_turn(tokens.ids, passed, frame, vocab),
    )


def _without_dummy_prefix(said: Said, frame: Frame) -> Numbers:
    """Where tokens begin, a space that a tokenizer with a dummy prefix takes from before a content left out."""
    next_region = np.minimum(frame.begins.searchsorted(said.begin, side="right"), len(frame.begins) - 1)
    start = frame.begins[next_region]
    spare = (said.begin + 1 == start) & (said.end > start)
    spare[spare] = said.text[said.begin[spare]] == ord(" ")
    return np.where(spare, start, said.begin)


def _ends_turn(ids: Numbers, passed: Numbers, frame: Frame, vocab: Vocab) -> Flags:
    """Tokens, bool: the first that ends a turn after the last content of a message that counts."""
    enders = [token_id for role in _TURN_ENDS for token_id in vocab.roles.get(role, ())]
    at = (np.isin(ids, enders) & frame.counts[passed] & frame.final[passed]).nonzero()[0]
    _, first = np.unique(passed[at], return_index=True)
    ends = np.zeros(len(ids), dtype=np.bool_)
    ends[at[first]] = True
    return ends


def between_the_same(one: ChatRow, other: ChatRow) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Each side's specials, without those between two contents that are no neighbours on the other side."""
    return (
        np.where(np.isin(one.between, other.between), one.specials, -1).astype(np.int32),
        np.where(np.isin(other.between, one.between), other.specials, -1).astype(np.int32),
    )


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
