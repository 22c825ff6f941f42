"""The components of a `tokenizer.json` (model, normaliser, pre-tokenizer, decoder): checked, and read as facts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import VocabularyError
from ..limits import MAX_GROWTH, MAX_ID, MAX_PATTERN
from ..sources.presets import AddedToken
from .json_blocks import Merges, merges_value
from .parsed import Stated
from .spelling import ByteFallback, ByteLevel, Replace, Spelling, Step, Suffix, Unspaced, WordPieces

_NESTED = ("normalizers", "pretokenizers", "decoders", "processors")
_MAX_DEPTH = 16
"""Deepest nesting of components; published files nest them twice."""

_MODEL_TEXTS = ("type", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")
_LEAF_TEXTS = {"replacement": "Metaspace", "prefix": "WordPiece", "suffix": "BPEDecoder", "str_rep": "Metaspace"}


def check_shape(data: Mapping[str, Any], name: str) -> None:
    """Checks components, model fields, vocabulary entries and added tokens.

    Args:
        data: the file's JSON, in which `model.vocab` is known to exist.
        name: the file's name, for messages.

    Raises:
        VocabularyError: names the part that is wrong.
    """
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        _check_component(data.get(part), part, name, 0)
        _check_growth(data.get(part), part, name)
    model = data["model"]
    for key in _MODEL_TEXTS:
        _expect(model.get(key), _is_text_or_none, f"{key} of the model in", name, "a string or null")
    _expect(model.get("unk_id"), _is_index_or_none, "unk_id of the model in", name, "a number or null")
    _expect(model.get("merges"), _is_list_or_none, "merges of the model in", name, "a list")
    _expect(data.get("added_tokens"), _is_list_or_none, "added_tokens of", name, "a list")
    if model.get("continuing_subword_prefix"):
        _check_continuations(listed_merges(model), model["continuing_subword_prefix"], name)
    for entry in data.get("added_tokens") or ():
        if not isinstance(entry, dict) or not _is_index(entry.get("id")) or not isinstance(entry.get("content"), str):
            raise VocabularyError(f"{name} has an added token without an id or a content: {entry!r:.80}")
        if not 0 <= entry["id"] <= MAX_ID:
            raise VocabularyError(f"{name} has the added token id {entry['id']}: ids lie between 0 and {MAX_ID}")


def model_type(model: Mapping[str, Any]) -> str:
    """The model's type; files written before the field existed are told by their other fields."""
    declared = model.get("type")
    if declared is not None:
        return str(declared)
    if "merges" in model:
        return "BPE"
    if isinstance(model["vocab"], list):
        return "Unigram"
    return "WordPiece" if "max_input_chars_per_word" in model else "WordLevel"


def listed_merges(model: Mapping[str, Any]) -> Sequence[Any]:
    """The model's merges as the file's JSON has them; none where it has no list."""
    merges = model.get("merges")
    return merges.parsed() if isinstance(merges, Merges) else merges or ()


def parts_of(merge: Any) -> tuple[str, str]:
    """The two halves of a merge, which old files write as `left right` and newer ones as a list.

    Raises:
        ValueError: it is neither.
    """
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if isinstance(parts, list) and len(parts) == 2:
        left, right = parts
        if isinstance(left, str) and isinstance(right, str):
            return left, right
    raise ValueError(f"{merge!r:.80} is neither `left right` nor a pair of strings")


def _check_continuations(merges: Sequence[Any], prefix: str, name: str) -> None:
    # `tokenizers` cuts as many bytes off every right half without looking, and takes the whole process down where that
    # leaves half a character.
    for merge in merges:
        try:
            _, right = parts_of(merge)
        except ValueError as error:
            raise VocabularyError(f"a merge of {name} cannot be read: {error}") from error
        if not right.startswith(prefix):
            raise VocabularyError(
                f"a merge of {name} continues a word with {right!r:.80}, without the prefix {prefix!r}"
            )


def _check_component(component: Any, part: str, name: str, depth: int) -> None:
    if component is None or component == {}:
        return
    _expect(component, _is_table, f"{part} of", name, "a table")
    if depth > _MAX_DEPTH:
        raise VocabularyError(f"the {part} of {name} is nested more than {_MAX_DEPTH} times")
    nested = next((key for key in _NESTED if key in component), None)
    if nested is None:
        _check_leaf(component, part, name)
        return
    _expect(component[nested], _is_list, f"{part} of", name, "a list of steps")
    for child in component[nested]:
        _check_component(child, part, name, depth + 1)


def _check_leaf(leaf: Mapping[str, Any], part: str, name: str) -> None:
    kind = leaf.get("type")
    _expect(kind, _is_text_or_none, f"type of a step in the {part} of", name, "a string")
    for key, owner in _LEAF_TEXTS.items():
        if kind == owner:
            _expect(leaf.get(key, ""), _is_text, f"{key} of {kind} in the {part} of", name, "a string")
    if kind == "Replace":
        pattern = leaf.get("pattern") or {}
        texts = list(_texts_of(pattern))
        if len(texts) != 1 or not isinstance(texts[0], str):
            raise VocabularyError(f"a Replace in the {part} of {name} has no pattern that is a string: {pattern!r:.80}")
        _expect(leaf.get("content"), _is_text, f"content of Replace in the {part} of", name, "a string")
        if part == "decoder" and "Regex" in pattern:
            _check_regex(texts[0], name)


def _check_growth(component: Mapping[str, Any] | None, part: str, name: str) -> None:
    """Refuses steps that multiply text: four that write a hundred characters for each make 10^8 of one."""
    growth = 1
    for leaf in components(component):
        if leaf.get("type") == "Replace":
            growth *= max(len(leaf["content"]), 1)
    if growth > MAX_GROWTH:
        raise VocabularyError(
            f"the {part} of {name} makes up to {growth:,} characters of one: no published tokenizer makes more than "
            f"{MAX_GROWTH}"
        )


def _check_regex(pattern: str, name: str) -> None:
    import regex

    if len(pattern) > MAX_PATTERN:
        raise VocabularyError(f"the decoder of {name} replaces by a pattern of over {MAX_PATTERN:,} characters")
    try:
        regex.compile(pattern)
    except (regex.error, RecursionError) as error:
        raise VocabularyError(f"the decoder of {name} replaces by a pattern that cannot be read: {error}") from error


def _texts_of(pattern: Any) -> Iterator[Any]:
    if isinstance(pattern, dict):
        yield from (pattern[key] for key in ("String", "Regex") if key in pattern)


def _expect(value: Any, fits: Callable[[Any], bool], what: str, name: str, expected: str) -> None:
    if not fits(value):
        raise VocabularyError(f"{what} {name} should be {expected}, and is {value!r:.80}")


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_text_or_none(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_list_or_none(value: Any) -> bool:
    return value is None or isinstance(value, (list, Merges))


def _is_index(value: Any) -> bool:
    return type(value) is int


def _is_index_or_none(value: Any) -> bool:
    return value is None or type(value) is int


_ESCAPE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def components(component: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """A component's leaves in order, sequences of sequences flattened."""
    if not component:
        return
    nested = next((component[key] for key in _NESTED if key in component), None)
    if nested is None:
        yield component
        return
    for child in nested:
        yield from components(child)


def rewrites_of(normalizer: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Regular expressions of what a normaliser replaces, but for single characters.

    >>> rewrites_of({"type": "Replace", "pattern": {"String": "``"}, "content": '"'})
    ('``',)
    >>> rewrites_of({"type": "Replace", "pattern": {"String": " "}, "content": "_"})
    ()
    """
    patterns = [leaf["pattern"] for leaf in components(normalizer) if leaf.get("type") == "Replace"]
    literal = [re.escape(pattern["String"]) for pattern in patterns if len(pattern.get("String", "")) > 1]
    return (*literal, *(pattern["Regex"] for pattern in patterns if "Regex" in pattern))


def has_type(component: Mapping[str, Any] | None, *types: str) -> bool:
    """Whether a leaf of the component has one of the types."""
    return any(leaf.get("type") in types for leaf in components(component))


def fallback_bytes(raw: Sequence[str | None]) -> list[int]:
    """The ids whose string is a byte escape `<0xNN>`."""
    return [
        token_id
        for token_id, text in enumerate(raw)
        if text is not None and len(text) == 6 and text.startswith("<0x") and _ESCAPE.fullmatch(text)
    ]


def spelling_of(data: Mapping[str, Any], model: str) -> Spelling:
    """Reads the spelling off the components.

    The decoder says most of it. Where it and the encoder disagree the encoder wins, since a surface is what text the
    encoder consumes: a byte-level pre-tokenizer makes the vocabulary byte-level whatever decoder a later save put
    there.

    Args:
        data: the file's JSON.
        model: the model's type.
    """
    steps = _decoder_steps(data.get("decoder"))
    encodes_bytes = has_type(data.get("pre_tokenizer"), "ByteLevel") or has_type(data.get("normalizer"), "ByteLevel")
    if encodes_bytes and ByteLevel() not in steps:
        steps = [*(step for step in steps if isinstance(step, Suffix)), ByteLevel()]
    if not any(isinstance(step, ByteLevel) or (isinstance(step, Replace) and step.content == " ") for step in steps):
        steps += _space_marks(data)
    return Spelling(tuple(_model_steps(data, model, steps) + steps))


def _decoder_steps(decoder: Mapping[str, Any] | None) -> list[Step]:
    """What a decoder's steps say of single tokens.

    Behind `Fuse` a step sees the whole text. What it changes character by character it changes in every token; all
    else (a space before a full stop, the first space of all) says nothing of one token.
    """
    steps: list[Step] = []
    fused = False
    for leaf in components(decoder):
        fused |= leaf.get("type") == "Fuse"
        for step in _decoder_step(leaf):
            by_character = not isinstance(step, Replace) or (not step.regex and len(step.pattern) == 1)
            if not fused or (by_character and not isinstance(step, (WordPieces, Suffix))):
                steps.append(step)
    return steps


def _decoder_step(leaf: Mapping[str, Any]) -> Iterator[Step]:
    kind = leaf.get("type")
    if kind == "ByteLevel":
        yield ByteLevel()
    elif kind == "ByteFallback":
        yield ByteFallback()
    elif kind == "Metaspace":
        yield Replace(str(leaf.get("replacement", "▁")), " ")
    elif kind == "Replace":
        pattern = leaf["pattern"]
        yield Replace(str(pattern.get("String", pattern.get("Regex"))), str(leaf["content"]), regex="Regex" in pattern)
    elif kind == "WordPiece":
        yield WordPieces(str(leaf.get("prefix", "##")))
    elif kind == "BPEDecoder":
        yield Suffix(str(leaf.get("suffix", "</w>")))
    # Fuse joins tokens, Strip trims the whole text and CTC removes repeats: none of them says anything of one token.


def _space_marks(data: Mapping[str, Any]) -> list[Step]:
    """What stands for a space, read from the encoder's side where the decoder is silent."""
    for leaf in components(data.get("pre_tokenizer")):
        if leaf.get("type") == "Metaspace":
            return [Replace(str(leaf.get("replacement", "▁")), " ")]
    for leaf in components(data.get("normalizer")):
        if leaf.get("type") == "Replace" and leaf["pattern"].get("String") == " " and leaf["content"].strip():
            return [Replace(str(leaf["content"]), " ")]
    return []


def _model_steps(data: Mapping[str, Any], model: str, steps: Sequence[Step]) -> list[Step]:
    added: list[Step] = []
    suffix = data["model"].get("end_of_word_suffix")
    if suffix and not any(isinstance(step, Suffix) for step in steps):
        added.append(Suffix(str(suffix)))
    if data["model"].get("byte_fallback") and ByteFallback() not in steps:
        added.append(ByteFallback())
    if not any(isinstance(step, (WordPieces, Replace, ByteLevel, Suffix)) for step in (*steps, *added)):
        prefix = data["model"].get("continuing_subword_prefix")
        if model == "WordPiece" or prefix:
            added.append(WordPieces("##" if prefix is None else str(prefix)))
        elif model == "WordLevel" and data.get("pre_tokenizer"):
            # Whole words with nothing between them in the ids: the words' spaces are theirs.
            added.append(WordPieces(""))
        elif has_type(data.get("pre_tokenizer"), "Whitespace", "WhitespaceSplit", "BertPreTokenizer"):
            # Pieces of words without a mark where a word begins: spaces are in no token.
            added.append(Unspaced())
    return added


# The parts by value, in the one form that equal behaviour has.

_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "ByteLevel": {"add_prefix_space": True, "use_regex": True},
    "Split": {"invert": False},
    "Metaspace": {"replacement": "▁", "split": True},
    "Digits": {"individual_digits": False},
    "Punctuation": {"behavior": "Isolated"},
    "BertNormalizer": {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True},
    "WordPiece": {"prefix": "##", "cleanup": True},
    "BPEDecoder": {"suffix": "</w>"},
}
"""What `tokenizers` takes for a setting that a file leaves out; a file that it has saved has them all."""

_NO_EFFECT = {"trim_offsets"}
_NO_EFFECT_IN_DECODERS = {"trim_offsets", "add_prefix_space", "use_regex", "prepend_scheme", "split"}
_MODEL_OPTIONS = (
    "ignore_merges",
    "byte_fallback",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "max_input_chars_per_word",
)


def in_new_terms(leaf: dict[str, Any]) -> dict[str, Any]:
    """A Metaspace step with `prepend_scheme`: `tokenizers` refuses an old one that switches its prefix off."""
    if leaf.get("type") != "Metaspace":
        return leaf
    settings = {key: value for key, value in leaf.items() if key not in ("add_prefix_space", "str_rep")}
    return {"prepend_scheme": "always" if leaf.get("add_prefix_space", True) else "never", **settings}


def stated_parts(
    data: Mapping[str, Any], added: Mapping[int, AddedToken], text: NDArray[np.bool_], *, byte_level: bool
) -> Stated:
    """The parts of a `tokenizer.json`; see `Stated`.

    Args:
        data: the file's JSON.
        added: its added tokens by id, with the flags that hold.
        text: bool (ids,), which ids text may become.
        byte_level: whether every byte has a token, so that the unknown token is never met.
    """
    steps = {part: _steps(data.get(part), part) for part in ("normalizer", "pre_tokenizer", "decoder")}
    # A flag says whether a token is looked for before or after the normaliser: without one it is the same.
    ignored = frozenset() if steps["normalizer"] else frozenset(("normalized",))
    flags: tuple[dict[int, list[str]], dict[int, list[str]]] = ({}, {})
    for token_id, token in added.items():
        set_flags = sorted((token.flags or frozenset()) - ignored)
        if set_flags:
            flags[token_id < len(text) and bool(text[token_id])][token_id] = set_flags
    return {
        **stated_model(data["model"], text, added),
        "model": ("json", _model_options(data["model"], byte_level=byte_level)),
        **{part: ("json", leaves) for part, leaves in steps.items()},
        "special_flags": ("json", flags[0]),
        "text_flags": ("json", flags[1]),
        "post_processor": ("json", [_around(data.get("post_processor"), texts) for texts in (("A",), ("A", "B"))]),
    }


def stated_model(model: Mapping[str, Any], text: NDArray[np.bool_], added: Mapping[int, AddedToken]) -> Stated:
    """The merges, or the scores of the pieces that text may become, bytes and added tokens aside."""
    if isinstance(model["vocab"], list):
        scores = np.array([score for _, score in model["vocab"]], dtype="<f4")
        pieces = text[: len(scores)].copy()
        others = fallback_bytes([piece for piece, _ in model["vocab"]]) if model.get("byte_fallback") else []
        pieces[[token_id for token_id in (*added, *others) if token_id < len(pieces)]] = False
        # Adding zero makes minus zero one, and nothing else another.
        return {"scores": ("unigram", (scores[: len(pieces)][pieces] + np.float32(0)).tobytes())}
    merges = model.get("merges")
    if merges is None:
        return {}
    return {"merges": ("bpe", merges_value(merges))}


def _model_options(model: Mapping[str, Any], *, byte_level: bool) -> dict[str, Any]:
    """The model's options; one that is null, false or empty is as if it were not there."""
    options = {key: model[key] for key in _MODEL_OPTIONS if model.get(key)}
    if not byte_level:
        unknown = {key: model.get(key) for key in ("unk_token", "unk_id", "fuse_unk")}
        options |= {key: value for key, value in unknown.items() if value not in (None, False)}
    return {"type": model_type(model), **options}


def _steps(component: Mapping[str, Any] | None, part: str) -> list[dict[str, Any]]:
    """A component's steps with all their settings, but for those that change no ids and no text."""
    without = _NO_EFFECT_IN_DECODERS if part == "decoder" else _NO_EFFECT
    leaves = ({**_DEFAULTS.get(str(leaf.get("type")), {}), **leaf} for leaf in components(component))
    return [{key: leaf[key] for key in leaf if key not in without} for leaf in map(in_new_terms, leaves)]


def _around(component: Mapping[str, Any] | None, texts: tuple[str, ...]) -> list[Any]:
    """The ids that a post-processor puts around one text or two, the texts as `A` and `B` between them."""
    row: list[Any] = list(texts)
    for leaf in components(component):
        kind = leaf.get("type")
        try:
            if kind == "TemplateProcessing":
                row = _of_template(leaf, row, paired=len(texts) > 1)
            elif kind in ("BertProcessing", "RobertaProcessing"):
                begin, end = leaf["cls"][1], leaf["sep"][1]
                between = [end] if kind == "BertProcessing" else [end, end]
                row = [begin, row[0], *(part for other in row[1:] for part in (*between, other)), end]
            elif kind != "ByteLevel":  # which trims offsets alone
                row = [*row, dict(leaf)]
        except (AttributeError, IndexError, KeyError, TypeError):
            row = [*row, dict(leaf)]
    return row


def _of_template(leaf: Mapping[str, Any], row: list[Any], *, paired: bool) -> list[Any]:
    """The row that a template makes of the texts of another."""
    made: list[Any] = []
    for piece in leaf["pair" if paired else "single"]:
        if "SpecialToken" in piece:
            made += leaf["special_tokens"][piece["SpecialToken"]["id"]]["ids"]
        else:
            made.append(row["AB".index(piece["Sequence"]["id"])])
    return made
