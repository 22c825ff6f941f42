"""`read_vocab`: from what a user types, or a tokenizer object, to a `Vocab`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import OptionError, VocabularyError, XTokenWarning
from .limits import MAX_ID
from .readers.parsed import Declared, Parsed, RowTokens
from .vocab.byte_strings import ByteStrings
from .vocab.canary import SHORT
from .vocab.kinds import Kind, decide_kinds
from .vocab.roles import decide_roles
from .vocab.surfaces import RankStrings, disagreeing_ids, surfaces_of
from .vocab.vocab import Sizes, Vocab


def read_vocab(
    source: str | os.PathLike[str] | Any,
    *,
    logits: int | None = None,
    pattern: str | None = None,
    revision: str | None = None,
    name: str | None = None,
) -> Vocab:
    """Reads a tokenizer.

    Args:
        source: a path, an alias, a Hub id with an optional `@revision`, `pkg:package/path`, a `tokenizers.Tokenizer` or
            a `PreTrainedTokenizerFast`.
        logits: the model's logit width, where the source does not know it or is wrong.
        pattern: the split pattern of a rank file.
        revision: Hub revision.
        name: the short name; by default the alias or the last part of the path.

    Returns:
        The vocabulary.

    Raises:
        SourceError: the source cannot be found, fetched or recognised.
        VocabularyError: its contents contradict themselves, or an id lies above `logits`.
        OptionError: `logits` is not positive, or `pattern` is not a regular expression.

    >>> vocab = read_vocab("llama-3")
    >>> vocab.sizes.logits, vocab.surfaces[279]
    (128256, b' the')
    """
    if logits is not None and logits <= 0:
        raise OptionError(f"a logit width is a positive number, got {logits}")
    if isinstance(source, (str, os.PathLike)):
        from .readers.dispatch import read_path
        from .sources.locate import locate

        located = locate(source, revision=revision)
        parsed = read_path(located.path, preset=located.preset, pattern=pattern)
        return assemble(
            parsed, name=name or located.name, source=located.label, revision=located.revision, logits=logits
        )
    from .readers.dispatch import read_object

    # `/models/Llama-3/` and `C:\models\Llama-3` are both `Llama-3`; a folder's full path is nobody's business.
    label = str(getattr(source, "name_or_path", "") or type(source).__name__)
    label = label.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]
    return assemble(read_object(source), name=name or label.lower(), source=label, logits=logits)


def as_vocab(given: Any) -> Vocab:
    """A vocabulary as it is, anything else read as a source."""
    return given if isinstance(given, Vocab) else read_vocab(given)


def assemble(
    parsed: Parsed, *, name: str, source: str, revision: str | None = None, logits: int | None = None
) -> Vocab:
    """Decides kinds, surfaces and roles, once for all formats.

    Raises:
        VocabularyError: there is no text in it, or an id lies above `logits`.
    """
    notes = list(parsed.warnings)
    ids = len(parsed.declared)
    width = _width(parsed, ids, logits, name, notes)
    # Kinds come first: which ids are special decides their surfaces (their own text) and their roles.
    kinds = decide_kinds(parsed, width)
    surfaces = surfaces_of(parsed, kinds)
    if not (kinds <= Kind.BYTE).any():
        raise VocabularyError(f"{name} has no ordinary tokens: there is nothing to map")
    for note in notes:
        warnings.warn(note, XTokenWarning, stacklevel=3)

    # `[PADn]` fillers are no tokens of the file; tokens above the logit width are, though nothing can predict them.
    declared = parsed.declared != Declared.ABSENT
    inside = min(ids, width)
    token_count = int((declared[:inside] & (kinds[:inside] != Kind.PADDING)).sum() + declared[inside:].sum())
    # Every id below the width has a raw string, "" where the file says nothing.
    strings = [*parsed.raw[:width], *[""] * (width - len(parsed.raw))]
    raw: Sequence[str]
    if parsed.token_bytes is None:
        raw = tuple(text or "" for text in strings)
    else:
        raw = RankStrings(strings, [*parsed.token_bytes[:width], *[None] * (width - len(parsed.token_bytes))])

    # Text may become text and byte ids alone; ids above the logit width have no kind and never come out.
    speakable = np.zeros(ids, dtype=np.bool_)
    speakable[:inside] = kinds[:inside] <= Kind.BYTE
    vocab = Vocab(
        name=name,
        source=source,
        revision=revision,
        raw=raw,
        surfaces=ByteStrings.of(surfaces),
        kinds=kinds,
        roles=decide_roles(parsed, kinds),
        sizes=Sizes(base=parsed.base_size, with_added=token_count, ids=ids, logits=width),
        make_encoder=lambda: parsed.make_encoder(speakable),
        row_tokens=_row_tokens(parsed, kinds, speakable),
        make_row_encoder=parsed.make_row_encoder,
        state=None if parsed.state is None else partial(parsed.state, speakable),
        disagreeing=disagreeing_ids(parsed, kinds, surfaces),
        joins_words=parsed.spelling.word_pieces,
        ends_words=parsed.spelling.end_of_word,
        rewrites=parsed.rewrites,
        chat_template=parsed.chat_template,
        warnings=tuple(notes),
    )
    # A tokenizer that cannot encode is refused when it is read, not in the middle of a build.
    vocab.encode_batch(SHORT)
    return vocab


def _row_tokens(parsed: Parsed, kinds: NDArray[np.uint8], speakable: NDArray[np.bool_]) -> RowTokens:
    """Which added tokens are found in every text, and which only where a template writes them.

    A special flag in the file or its configuration, or a role that the configuration gives, makes a control token.
    """
    count = min(len(kinds), len(parsed.declared))
    added = (parsed.declared[:count] == Declared.ADDED) & (kinds[:count] <= Kind.RESERVED)
    special = (kinds[:count] == Kind.SPECIAL) | (kinds[:count] == Kind.RESERVED)
    by_config = parsed.flagged | {text for texts in parsed.roles.values() for text in texts}
    literal: dict[str, int] = {}
    controls: dict[str, int] = {}
    for token_id in (added | special).nonzero()[0].tolist():
        text = parsed.raw[token_id]
        is_found = parsed.found is None or token_id in parsed.found or text in by_config
        if text and is_found:
            is_control = special[token_id] and (not added[token_id] or text in by_config)
            (controls if is_control else literal).setdefault(text, token_id)
    return RowTokens(speakable, literal, controls)


def _width(parsed: Parsed, ids: int, logits: int | None, name: str, notes: list[str]) -> int:
    width = parsed.width if logits is None else logits
    if width is not None and width > MAX_ID + 1:
        origin = parsed.width_source if logits is None else "what was given"
        raise VocabularyError(f"{name} has {width} logits by {origin}: no model has more than {MAX_ID + 1}")
    if logits is not None:
        if ids > logits:
            raise VocabularyError(
                f"{name} has ids up to {ids - 1}, above the logit width {logits} that was given: give the model's own"
            )
        return logits
    if parsed.width is None:
        return ids
    if ids > parsed.width:
        notes.append(
            f"{name} has ids up to {ids - 1}, but {parsed.width_source} gives the model {parsed.width} logits: the ids "
            "above are left out"
        )
    return parsed.width
