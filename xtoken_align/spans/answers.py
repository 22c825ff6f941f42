"""A student's own answers: what it continues, and rows of what it wrote as the teacher's tokenizer spells it.

The student's ids are never decoded and encoded again: they are what the student is scored on. The teacher reads the
text of the same ids, cut as its own tokenizer cuts it. A student that continues `<s> the sum` and writes ` of 12 </s>`:

    student  <s> the " sum" | " of" " 1" 2 </s>      continued | written
    teacher  <s> the " sum of" " 12" </s>            " sum of" is one token for two, one of which was not written, so
                                                     that it has no weight; " 12" and the end have chunks with weight

In a chat each side reads its own template's words up to the answer (`frame`); only the answer is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from ..errors import OptionError
from ..readers.parsed import Part
from ..vocab.kinds import Kind
from ..vocab.vocab import Vocab
from .aligner import Aligner
from .careful import TextPair, chunks_of_units
from .chats import Rendered, control_parts, text_of_any_run, tokenize_chats, turn_tokens
from .fold import SideText, one_after_another, text_of_run
from .pieces import Chat, check_messages, pieces_of, place_pieces
from .tables import PairTables
from .templates import Renderer, Tools, one_moment, tools_of
from .units import Flags, Numbers, encode_texts, offsets_of, one_per_row

STAND_IN = "\ue0f1"
"""What stands for an answer where a template is asked what it writes around one: a private-use character."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Prompt:
    """What a student continues, and what a teacher reads in its place.

    Attributes:
        ids: int64 (tokens,), the student's.
        frame: how many of them are not compared: BOS, or a chat up to its answer.
        space: white space that the student's template writes before an answer, and that the student has to write.
        teacher_ids: the teacher's frame where it is ids: BOS, or the beginning of a row of ids.
        teacher_parts: the teacher's frame where it is text, encoded together with the answer.
        teacher_space: as `space`.
        teacher_end: what ends an answer by the teacher's template: a control token, or nothing if the template writes
            none; None where the student's own end decides, as in texts.
    """

    ids: Numbers
    frame: int
    space: str = ""
    teacher_ids: tuple[int, ...] = ()
    teacher_parts: tuple[Part, ...] = ()
    teacher_space: str = ""
    teacher_end: tuple[Part, ...] | None = None


@dataclass(frozen=True, eq=False)
class Answer:
    """What a student wrote after a prompt.

    Attributes:
        ids: int64 (tokens,), with the token that ended it.
        ended: whether the model ended it; else it was cut off. A last token that is text ends nothing on the teacher's
            side.
    """

    ids: Numbers
    ended: bool

    def stop(self, vocab: Vocab) -> int | None:
        """The special token that ended it."""
        last = int(self.ids[-1]) if self.ended and len(self.ids) else None
        return last if last is not None and vocab.kinds[last] > Kind.BYTE else None


# Prompts


def prompts_of(aligner: Aligner, rows: Sequence[Mapping[str, Any]], *, prompt_tokens: int) -> list[Prompt]:
    """What the student continues in each row of a data set.

    - `prompt`, a text or messages: that, whatever else the row has.
    - `messages`: all before the last message, if that is an assistant's, and what the template writes before an answer;
      here too each side's template is given the row's `tools`.
    - `text`: its first tokens, at most half of them.
    - `student_ids` and `teacher_ids`: what stands before the first token that counts; without a loss mask as of texts.

    Args:
        aligner: both tokenizers, with templates and BOS.
        rows: the rows; an answer that they have is not read, but for the length of a text.
        prompt_tokens: how many tokens of a text are continued.

    Raises:
        OptionError: a row has none of these forms, or a template refuses its chat.
    """
    prompts: list[Prompt] = []
    for number, row in enumerate(rows):
        try:
            prompts.append(_prompt_of(aligner, row, prompt_tokens))
        except OptionError as error:
            raise OptionError(f"row {number}: {error}") from error
    return prompts


def _prompt_of(aligner: Aligner, row: Mapping[str, Any], prompt_tokens: int) -> Prompt:
    given = row.get("prompt", row.get("messages", row.get("text")))
    if isinstance(given, str):
        return _prompt_of_text(aligner, given, None if "prompt" in row else prompt_tokens)
    if given is not None:
        return _prompt_of_chat(aligner, given, tools_of(row.get("tools")))
    if "student_ids" in row and "teacher_ids" in row:
        return _prompt_of_ids(aligner, row, prompt_tokens)
    raise OptionError(f"it needs a `prompt`, `messages`, a `text`, or ids of both sides; it has {sorted(row)}")


def _prompt_of_text(aligner: Aligner, text: str, prompt_tokens: int | None) -> Prompt:
    """Of `<s> a b c d e` with prompt_tokens 3: `<s> a b`, two of five tokens, since three are more than half."""
    student, teacher = aligner.tables.student, aligner.tables.teacher
    encoded = encode_texts([text], student, bos=aligner.bos, eos=False)
    frame = 0 if encoded.bos is None else 1
    ids = encoded.ids
    if prompt_tokens is not None:
        # Without BOS the student needs one token at least to go on from.
        ids = ids[: frame + max(min(prompt_tokens, (len(ids) - frame) // 2), 1 - frame)]
    return Prompt(ids=ids, frame=frame, teacher_ids=_begin(aligner, teacher))


def _begin(aligner: Aligner, vocab: Vocab) -> tuple[int, ...]:
    return vocab.roles.get("bos", ())[:1] if aligner.bos else ()


def _prompt_of_ids(aligner: Aligner, row: Mapping[str, Any], prompt_tokens: int) -> Prompt:
    sides: list[tuple[Numbers, int]] = []
    for side, vocab in (("student", aligner.tables.student), ("teacher", aligner.tables.teacher)):
        ids = np.asarray(row[f"{side}_ids"], dtype=np.int64)
        mask = row.get(f"{side}_loss_mask")
        counts = np.ones(len(ids), dtype=np.bool_) if mask is None else np.asarray(mask) != 0
        is_text = counts & (vocab.kinds[ids] <= Kind.BYTE)
        sides.append((ids, int((is_text if counts.all() else counts).argmax()) if is_text.any() else len(ids)))
    (ids, frame), (teacher_ids, teacher_frame) = sides
    # More than BOS before the first token that counts is a template, and the answer is all that follows.
    from_text = 0 if frame > 1 else max(min(prompt_tokens, (len(ids) - frame) // 2), 1 - frame)
    return Prompt(ids=ids[: frame + from_text], frame=frame, teacher_ids=tuple(teacher_ids[:teacher_frame].tolist()))


def _prompt_of_chat(aligner: Aligner, chat: Chat, tools: Tools | None) -> Prompt:
    check_messages(chat)
    messages = [dict(message) for message in chat]
    if messages and messages[-1].get("role") == "assistant":
        messages.pop()
    tables, options = aligner.tables, aligner.chat_options
    with one_moment():
        renders = [render.with_tools(tools) for render in aligner.renders]
        asked, space, _ = _asked(messages, renders[0], tables.student)
        teacher_asked, teacher_space, end = _asked(messages, renders[1], tables.teacher)
    ((ids, _),) = tokenize_chats([asked], tables.student, tables, first_id=0, options=options)
    return Prompt(
        ids=ids,
        frame=len(ids),
        space=space,
        teacher_parts=tuple(control_parts(teacher_asked, tables.teacher, options)),
        teacher_space=teacher_space,
        teacher_end=end,
    )


def _asked(messages: list[dict[str, Any]], render: Renderer, vocab: Vocab) -> tuple[Rendered, str, tuple[Part, ...]]:
    """A chat up to its answer, the space that belongs before an answer, and what ends one, by a side's template.

    A template that ignores `add_generation_prompt` is shown an answer: of `<a>: *</a>` with the answer `*` it writes
    `<a>:`, a space and `</a>`. The space is left to the student, whose tokens of words begin with one.
    """

    def answered(chat: list[dict[str, Any]]) -> tuple[str, str, str]:
        return render([*chat, {"role": "assistant", "content": STAND_IN}]).partition(STAND_IN)

    before, stood, after = answered(messages)
    asking: Callable[[list[dict[str, Any]]], str] = render.asking
    space = ""
    if stood and render.asking(messages) == render(messages):
        asking = lambda chat: answered(chat)[0].rstrip(" ")  # noqa: E731 - a name for either of two functions
        space = before[len(before.rstrip(" ")) :][:1]
    placed = place_pieces(messages, pieces_of(messages), asking)
    rendered = Rendered(placed.text, (), tuple(sorted(placed.at.values())), unplaced=False)
    ender = turn_tokens(vocab).end_behind(after, 0, len(after), told=False)
    if ender is None:
        return rendered, space, ()
    name = after[slice(*ender)]
    return rendered, space, ((after[: ender[0]], None), (name, vocab.controls.get(name)))


# Answers


def rows_of_answers(aligner: Aligner, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Rows with ids, chunks and loss masks of both sides, as `SpanCollator` takes them; only what was written counts.

    Args:
        aligner: the one that made the prompts.
        prompts: what was continued.
        answers: what was written.

    Raises:
        OptionError: an id is not one of the student's.
    """
    tables = aligner.tables
    for number, answer in enumerate(answers):
        if len(answer.ids) and not 0 <= int(answer.ids.min()) <= int(answer.ids.max()) < len(tables.student):
            raise OptionError(
                f"answer {number} has ids from {answer.ids.min()} to {answer.ids.max()}, but the student has 0 to "
                f"{len(tables.student) - 1}: give the ids that it sampled"
            )
    continued = [
        np.concatenate([prompt.ids[prompt.frame :], answer.ids]).astype(np.int64)
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    if _is_one_tokenizer(tables):
        # The teacher can read the very ids, and each token is a chunk.
        frames = _heard(prompts, [[] for _ in prompts], tables)
        heard = [(np.concatenate([row.ids, ids]), len(row.ids)) for row, ids in zip(frames, continued, strict=True)]
        chunks = [(np.arange(len(ids)), np.arange(len(ids))) for ids in continued]
    else:
        heard, chunks = _aligned(prompts, answers, continued, tables)
    return [
        {
            "student_ids": np.concatenate([prompt.ids, answer.ids]),
            "teacher_ids": ids,
            "student_chunks": np.concatenate([np.full(prompt.frame, -1), own]),
            "teacher_chunks": np.concatenate([np.full(frame, -1), its]),
            "student_loss_mask": np.arange(len(prompt.ids) + len(answer.ids)) >= len(prompt.ids),
            "teacher_loss_mask": np.arange(len(ids)) >= frame,
        }
        for prompt, answer, (ids, frame), (own, its) in zip(prompts, answers, heard, chunks, strict=True)
    ]


@lru_cache(maxsize=8)
def _is_one_tokenizer(tables: PairTables) -> bool:
    """Whether both sides have the same tokens under the same ids, specials included; one may have more padding."""
    student, teacher = tables.student, tables.teacher
    size = min(len(student), len(teacher))
    return student is teacher or (
        student.fingerprint == teacher.fingerprint
        and student.roles == teacher.roles
        and np.array_equal(student.kinds[:size], teacher.kinds[:size])
        and [*student.raw[:size]] == [*teacher.raw[:size]]
        and all((vocab.kinds[size:] == Kind.PADDING).all() for vocab in (student, teacher))
    )


def _aligned(
    prompts: Sequence[Prompt], answers: Sequence[Answer], continued: Sequence[Numbers], tables: PairTables
) -> tuple[list[tuple[Numbers, int]], list[tuple[Numbers, Numbers]]]:
    """The teacher's rows, each with the length of its frame; and both sides' chunks behind the frames."""
    said = [_said(*each, tables) for each in zip(prompts, answers, continued, strict=True)]
    heard = _heard(prompts, [each.parts for each in said], tables)
    student, teacher = (
        one_per_row(np.concatenate([np.zeros(0, dtype=np.int64), *ids]), np.array([*map(len, ids)], dtype=np.int64))
        for ids in (continued, [row.ids[row.frame :] for row in heard])
    )

    def texts_of(unit: int) -> TextPair | None:
        text = heard[unit].text
        return None if text is None else (said[unit].text, text)

    # By their surfaces alone, two spaces are the beginning of the same two behind a dummy prefix.
    doubtful = np.array(
        [
            row.joined or not "".join(text for text, _ in each.parts[:1]).strip()
            for row, each in zip(heard, said, strict=True)
        ],
        dtype=np.bool_,
    )
    chunks = chunks_of_units(student, teacher, tables, texts_of, doubtful)
    sides = []
    for chunk, side in ((chunks.student, student), (chunks.teacher, teacher)):
        # Counted from 0 in every row.
        first = offsets_of(chunks.count)[:-1].repeat(side.counts)
        sides.append(np.split(np.where(chunk >= 0, chunk - first, -1), side.offsets[1:-1]))
    return [(row.ids, row.frame) for row in heard], list(zip(*sides, strict=True))


@dataclass(frozen=True, eq=False)
class _Said:
    """What a student's tokens say.

    Attributes:
        parts: as the teacher's encoder takes it.
        text: where on the axis of the parts' bytes each token stands.
    """

    parts: list[Part]
    text: SideText


def _said(prompt: Prompt, answer: Answer, continued: Numbers, tables: PairTables) -> _Said:
    """What the student's tokens say to the teacher, from the first one behind the frame on.

    A special with a counterpart on the teacher's side becomes that one, others say nothing. The student's tokens `a`,
    0xC3, `<think>`, `b` and 0xE4, where the answer was cut off:

        parts    a U+FFFD <think> b       0xC3 is no character by itself, and is shown as every decoder shows it; what
                                          would have become of 0xE4 nobody knows, and the teacher does not read it
        tokens   0-1  1-4  4  11-12  12   0xC3 and 0xE4 are in no chunk

    Args:
        prompt: what was continued.
        answer: what was written.
        continued: int64 (tokens,), both without the frame.
        tables: the pair's tables.
    """
    student, teacher = tables.student, tables.teacher
    stop = answer.stop(student)
    ids = continued[: len(continued) - (stop is not None)]
    counterparts = _counterparts(ids, tables)
    parts: list[Part] = []
    begins, ends, is_whole = [], [], []
    done = size = 0
    for at in (*counterparts, len(ids)):
        # A special itself says nothing behind the text before it.
        run = ids[done : at + 1]
        text, place, whole = _read(tables.surfaces(run).tobytes(), final=answer.ended or at < len(ids))
        if not parts:
            lead = _leading_space(prompt, text, student)
            text = prompt.teacher_space + text[lead:]
            place = np.maximum(place + len(prompt.teacher_space) - lead, 0)
        bounds = offsets_of(tables.lengths[run])
        broken = np.append(0, (~whole).cumsum())[bounds]
        begins.append(place[bounds[:-1]] + size)
        ends.append(place[bounds[1:]] + size)
        is_whole.append((broken[1:] == broken[:-1]) & (bounds[1:] > bounds[:-1]))
        parts.append((text, None))
        if at in counterparts:
            parts.append((teacher.raw[counterparts[at]], counterparts[at]))
        done, size = at + 1, sum(_size(part) for part, _ in parts)
    if stop is not None:
        *before, end = _end_of(prompt, stop, tables) or [("", None)]
        parts += [*before, end]
        at_end = np.array([size + sum(_size(part) for part, _ in before)])
        begins.append(at_end)
        ends.append(at_end)
        is_whole.append(np.zeros(1, dtype=np.bool_))
    sharp = np.ones(len(continued), dtype=np.bool_)
    return _Said(
        parts=[part for part in parts if part[0]],
        text=SideText(
            text=np.frombuffer("".join(text for text, _ in parts).encode("utf-8", "surrogatepass"), dtype=np.uint8),
            begin=np.concatenate(begins),
            end=np.concatenate(ends),
            sharp_begin=sharp,
            sharp_end=sharp,
            has_text=np.concatenate(is_whole),
            specials=np.where(student.kinds[continued] <= Kind.BYTE, -1, tables.special[continued]).astype(np.int32),
        ),
    )


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _leading_space(prompt: Prompt, text: str, student: Vocab) -> int:
    """1 where a text begins with a space that is none of an answer's: a dummy prefix, or the template's."""
    behind_special = prompt.frame == 0 or student.kinds[prompt.ids[prompt.frame - 1]] > Kind.BYTE
    invented = (student.encoder.dummy_prefix and behind_special) or bool(prompt.space)
    return int(invented and text.startswith(" "))


def _read(data: bytes, *, final: bool) -> tuple[str, Numbers, Flags]:
    r"""Bytes as text; where each of them stands in its UTF-8; and which of them are there as they are.

    Bytes that are no character are U+FFFD, in as many pieces as decoders make of them (Unicode 16, section 3.9).

    Args:
        data: the bytes.
        final: whether a character that is unfinished at the end stays so; else it is left out.

    >>> text, at, whole = _read(b"a\xc3b\xe4\xbd", final=False)
    >>> text, at.tolist(), whole.tolist()
    ('a\ufffdb', [0, 1, 4, 5, 5, 5], [True, False, True, False, False])
    """
    text: list[str] = []
    at, whole = np.zeros(len(data) + 1, dtype=np.int64), np.ones(len(data), dtype=np.bool_)
    done = size = 0
    while done < len(data):
        try:
            good, bad, shown = data[done:].decode(), (len(data), len(data)), ""
        except UnicodeDecodeError as error:
            bad = done + error.start, done + error.end
            unfinished = bad[1] == len(data) and not final and "unexpected end" in error.reason
            good, shown = data[done : bad[0]].decode(), "" if unfinished else "\ufffd"
        at[done : bad[0]] = size + np.arange(bad[0] - done)
        size += bad[0] - done
        at[bad[0] : bad[1]] = size
        whole[bad[0] : bad[1]] = False
        size += _size(shown)
        text += [good, shown]
        done = bad[1]
    at[-1] = size
    return "".join(text), at, whole


def _counterparts(ids: Numbers, tables: PairTables) -> dict[int, int]:
    """Where the student's specials stand that the teacher has too, each with the teacher's special."""
    rows = tables.special[ids]
    of_teacher = tables.special[len(tables.student) :]
    return {
        at: int((of_teacher == tables.same_special[rows[at]].argmax()).argmax())
        for at in (rows >= 0).nonzero()[0].tolist()
        if tables.same_special[rows[at]].any()
    }


def _end_of(prompt: Prompt, stop: int, tables: PairTables) -> list[Part]:
    """What ends the teacher's row where the student's was ended by a token: its template's end, or that of its role."""
    if prompt.teacher_end is not None:
        return list(prompt.teacher_end)
    roles = tables.teacher.roles
    # A model's end of turn may be its end of text too: then it ends a text.
    role = next((role for role in ("eos", "eot", "eom") if stop in tables.student.roles.get(role, ())), "eos")
    ends = roles.get(role) or roles.get("eos") or roles.get("eot") or ()
    return [(tables.teacher.raw[token], token) for token in ends[:1]]


@dataclass(frozen=True, eq=False)
class _Heard:
    """A row on the teacher's side.

    Attributes:
        ids: int64 (tokens,).
        frame: how many of them are not compared.
        text: what the others say; None where nobody knows which characters each of them stands for.
        joined: whether a token has the frame's last characters and the answer's first.
    """

    ids: Numbers
    frame: int
    text: SideText | None
    joined: bool


def _heard(prompts: Sequence[Prompt], said: Sequence[Sequence[Part]], tables: PairTables) -> list[_Heard]:
    """Encodes the teacher's rows."""
    teacher, first_id = tables.teacher, len(tables.student)
    rows = [[*prompt.teacher_parts, *parts] for prompt, parts in zip(prompts, said, strict=True)]
    heard = []
    for prompt, runs in zip(prompts, teacher.row_encoder.encode_parts(rows), strict=True):
        ids = np.array([*prompt.teacher_ids, *(token for run in runs for token in run.ids)], dtype=np.int64)
        known = [text_of_run(run, teacher, tables, first_id=first_id) for run in runs]
        if not prompt.teacher_parts and any(text is None for text in known):
            heard.append(_Heard(ids, len(prompt.teacher_ids), None, joined=False))
            continue
        text = one_after_another(
            [
                text_of_any_run(run, teacher, tables, first_id) if text is None else text
                for run, text in zip(runs, known, strict=True)
            ]
        )
        at = sum(_size(part) for part, _ in prompt.teacher_parts)
        inside = text.begin >= at
        first = int(inside.argmax()) if inside.any() else len(inside)
        joined = first > 0 and int(text.end[first - 1]) > at
        heard.append(_Heard(ids, len(prompt.teacher_ids) + first, _from(text, first, at), joined))
    return heard


def _from(side: SideText, first: int, at: int) -> SideText:
    """The tokens from one on, on the axis of the text from a byte on."""
    return SideText(
        text=side.text[at:],
        begin=side.begin[first:] - at,
        end=side.end[first:] - at,
        sharp_begin=side.sharp_begin[first:],
        sharp_end=side.sharp_end[first:],
        has_text=side.has_text[first:],
        specials=side.specials[first:],
    )
