"""What the components of a `tokenizer.json` (normaliser, pre-tokenizer, model, decoder) say about its spelling."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .spelling import ByteFallback, ByteLevel, Replace, Spelling, Step, Suffix, WordPieces

_NESTED = ("normalizers", "pretokenizers", "decoders", "processors")
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
    steps = [step for leaf in components(data.get("decoder")) for step in _decoder_step(leaf)]
    encodes_bytes = has_type(data.get("pre_tokenizer"), "ByteLevel") or has_type(data.get("normalizer"), "ByteLevel")
    if encodes_bytes and ByteLevel() not in steps:
        steps = [*(step for step in steps if isinstance(step, Suffix)), ByteLevel()]
    if not any(isinstance(step, ByteLevel) or (isinstance(step, Replace) and step.content == " ") for step in steps):
        steps += _space_marks(data)
    return Spelling(tuple(_model_steps(data, model, steps) + steps))


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
    found: list[Step] = []
    suffix = data["model"].get("end_of_word_suffix")
    if suffix and not any(isinstance(step, Suffix) for step in steps):
        found.append(Suffix(str(suffix)))
    if data["model"].get("byte_fallback") and ByteFallback() not in steps:
        found.append(ByteFallback())
    if not any(isinstance(step, (WordPieces, Replace, ByteLevel, Suffix)) for step in (*steps, *found)):
        prefix = data["model"].get("continuing_subword_prefix")
        if model == "WordPiece" or prefix:
            found.append(WordPieces("##" if prefix is None else str(prefix)))
        elif model == "WordLevel" and data.get("pre_tokenizer"):
            # Whole words with nothing between them in the ids: the words' spaces are theirs.
            found.append(WordPieces(""))
    return found
