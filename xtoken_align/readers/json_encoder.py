"""The encoder of a `tokenizer.json`: `tokenizers` itself, on a copy that holds nothing but ordinary text."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ..errors import VocabularyError, refused
from ..sources.presets import AddedToken
from .configs import FLAGS
from .json_blocks import Merges, merges_value, to_json
from .json_shape import components, has_type, in_new_terms, listed_merges, model_type, parts_of
from .parsed import Part, RowTokens, Run
from .spelling import characters_of

NONCHARACTER = "\uffff"
"""What the names of hidden tokens begin and end with."""


def _hidden(token_id: int) -> str:
    # Real text has no noncharacters, and no normaliser changes one. A text that has one anyway is cut there (`_SEAM`).
    return f"{NONCHARACTER}{token_id}{NONCHARACTER}"


def _map_leaves(
    component: Any,
    change: Callable[[dict[str, Any]], dict[str, Any] | None],
) -> Any:
    """The component with every leaf changed, or dropped where `change` returns None."""
    if not component:
        return component
    for key in ("normalizers", "pretokenizers", "decoders"):
        if key in component:
            children = (_map_leaves(child, change) for child in component[key])
            return {**component, key: [child for child in children if child is not None]}
    return change(dict(component))


def text_only(
    data: Mapping[str, Any], added: Mapping[int, AddedToken], speakable: NDArray[np.bool_]
) -> tuple[dict[str, Any], dict[int, int]]:
    """Makes the copy; the dummy prefix is still in it.

    Args:
        data: the file's JSON; it is not changed.
        added: its added tokens by id.
        speakable: bool (ids,), which ids text may become.

    Returns:
        The copy, and its base tokens' ids that differ from the file's: the copy's -> the file's, -1 for a piece that
        the file does not have.

    Raises:
        VocabularyError: a merge cannot be read.
    """
    flags = {entry["id"]: entry for entry in data.get("added_tokens") or ()}
    listed = [
        {
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            **flags.get(token.id, {}),
            "id": token.id,
            "content": token.text,
            "special": False,
        }
        for token in sorted(added.values(), key=lambda token: token.id)
        if token.id < len(speakable) and speakable[token.id]
    ]
    model = dict(data["model"])
    vocab = model["vocab"]
    pieces = [piece for piece, _ in vocab] if isinstance(vocab, list) else list(vocab)
    ids = np.arange(len(pieces)) if isinstance(vocab, list) else np.fromiter(vocab.values(), np.int64, len(pieces))
    in_texts = np.zeros(max(int(ids.max(initial=-1)) + 1, len(speakable)), dtype=np.bool_)
    in_texts[: len(speakable)] = speakable
    hidden = {int(ids[at]): pieces[at] for at in np.flatnonzero(~in_texts[ids]).tolist()}
    base_ids = _hide(model, hidden)
    if "dropout" in model:
        model["dropout"] = None
    copy = {
        "version": data.get("version", "1.0"),
        "truncation": None,
        "padding": None,
        "added_tokens": listed,
        "normalizer": data.get("normalizer"),
        "pre_tokenizer": _map_leaves(data.get("pre_tokenizer"), in_new_terms),
        "post_processor": None,
        "decoder": None,
        "model": model,
    }
    return copy, base_ids


def _hide(model: dict[str, Any], hidden: Mapping[int, str]) -> dict[int, int]:
    """Renames hidden base tokens, so that no text can reach them, and closes holes between the ids.

    Of the ids 0, 1 and 3 the copy makes 0, 1 and 2, and returns {2: 3}: its 2 is the file's 3.

    Returns:
        The copy's ids that differ from the file's -> the file's, -1 for a piece that the file does not have.
    """
    vocab = model["vocab"]
    if isinstance(vocab, list):
        return _hide_pieces(model, hidden)
    names = {text: _hidden(token_id) for token_id, text in hidden.items()}
    if not names and max(vocab.values(), default=-1) + 1 == len(vocab):
        return {}
    renamed = {names.get(text, text): token_id for text, token_id in vocab.items()} if names else dict(vocab)
    order = sorted(renamed.values())
    moved = {in_copy: in_file for in_copy, in_file in enumerate(order) if in_copy != in_file}
    if moved:
        # `tokenizers` numbers added tokens from the vocabulary's size on. With a hole, that number is a base token's.
        place = {in_file: in_copy for in_copy, in_file in enumerate(order)}
        renamed = {text: place[token_id] for text, token_id in renamed.items()}
    model["vocab"] = renamed
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if names and model.get("merges"):
        prefix = str(model.get("continuing_subword_prefix") or "")
        left = _merges_without(listed_merges(model), names, prefix)
        model["merges"] = Merges(merges_value(left), paired=isinstance(left[0], list)) if left else []
    return moved


def _hide_pieces(model: dict[str, Any], hidden: Mapping[int, str]) -> dict[int, int]:
    pieces = [
        [_hidden(token_id), score] if token_id in hidden else [piece, score]
        for token_id, (piece, score) in enumerate(model["vocab"])
    ]
    model["vocab"] = pieces
    if model.get("unk_id") is not None:
        return {}
    # Without an unknown piece, a Unigram model refuses a text with a character that no piece has. BPE models drop it.
    model["unk_id"] = len(pieces)
    pieces.append([_hidden(len(pieces)), 0.0])
    return {len(pieces) - 1: -1}


def _merges_without(merges: Sequence[Any], names: Mapping[str, str], prefix: str) -> list[Any]:
    """The merges that neither use nor make a hidden token."""

    def touches(merge: Any) -> bool:
        left, right = parts_of(merge)
        return left in names or right in names or left + right.removeprefix(prefix) in names

    try:
        return [merge for merge in merges if not touches(merge)]
    except ValueError as error:
        raise VocabularyError(f"a merge of this tokenizer.json cannot be read: {error}") from error


def has_prefix(data: Mapping[str, Any]) -> bool:
    """Whether some component puts a space before the text."""
    return has_type(data["normalizer"], "Prepend") or any(
        leaf.get("type") == "Metaspace" or leaf.get("add_prefix_space")
        for leaf in components(data["pre_tokenizer"])
        if leaf.get("prepend_scheme") != "never"
    )


def without_prefix(data: Mapping[str, Any]) -> dict[str, Any]:
    """The copy with every step that puts a space before the text taken out or switched off."""

    def normalizer(leaf: dict[str, Any]) -> dict[str, Any] | None:
        return None if leaf.get("type") == "Prepend" else leaf

    def splitter(leaf: dict[str, Any]) -> dict[str, Any]:
        if leaf.get("type") == "Metaspace":
            return {**leaf, "prepend_scheme": "never"}
        return {**leaf, "add_prefix_space": False} if "add_prefix_space" in leaf else leaf

    return {
        **data,
        "normalizer": _map_leaves(data["normalizer"], normalizer),
        "pre_tokenizer": _map_leaves(data["pre_tokenizer"], splitter),
    }


_SEAM = re.compile(rf"(?<=<)(?=0x[0-9A-Fa-f]{{2}}>)|(?<={NONCHARACTER})")
_BATCH = 4096
_SPACE = re.compile(r"\s")
_CANNOT_ENCODE = "tokenizers cannot encode with this tokenizer.json"


def _file_ids(tokenizer: Tokenizer, copy: Mapping[str, Any], base_ids: Mapping[int, int]) -> dict[int, int]:
    """The file's number of every id that the copy numbers otherwise; -1 for what is no token of the file."""
    vocab = copy["model"]["vocab"]
    own = vocab if isinstance(vocab, dict) else {piece for piece, _ in vocab}
    file_ids = dict(base_ids)
    for entry in reversed(copy["added_tokens"]):
        # A base token may be listed as an added one under another id; the encoder produces its base id.
        in_copy = tokenizer.token_to_id(entry["content"])
        if in_copy is not None and entry["content"] not in own:
            file_ids[in_copy] = int(entry["id"])
    return {in_copy: in_file for in_copy, in_file in file_ids.items() if in_copy != in_file}


class JsonEncoder:
    """Encodes with the file's own model, normaliser and pre-tokenizer.

    Args:
        data: the file's JSON; it is not changed.
        added: its added tokens by id.
        speakable: bool (ids,), which ids text may become.
        byte_level: whether the base vocabulary is spelled by the byte table.

    Raises:
        VocabularyError: `tokenizers` refuses the components.
    """

    def __init__(
        self,
        data: Mapping[str, Any],
        added: Mapping[int, AddedToken],
        speakable: NDArray[np.bool_],
        *,
        byte_level: bool,
    ) -> None:
        copy, base_ids = text_only(data, added, speakable)
        self._byte_level = byte_level
        self._bare = _load(without_prefix(copy))
        self._prefixed = self._bare
        self._ids = _file_ids(self._bare, copy, base_ids)
        # Unigram models, and models that look up whole words, read the text `<0x41>` as the byte piece of that name.
        looks_up = model_type(data["model"]) == "Unigram" or bool(data["model"].get("ignore_merges"))
        self._cuts_escapes = looks_up and bool(data["model"].get("byte_fallback"))
        self._leading_lost = self._inner_lost = False
        self.dummy_prefix = has_prefix(copy)
        if self.dummy_prefix:
            self._leading_lost, self._inner_lost = self._loses("x", " x"), self._loses("xy", "x y")
            if self._leading_lost:
                self._prefixed = _load(copy)

    def _loses(self, without: str, with_space: str) -> bool:
        """Whether the pre-tokenizer cannot tell two texts that differ in a space."""

        def seen(text: str) -> str:
            normalizer, splitter = self._bare.normalizer, self._bare.pre_tokenizer
            text = text if normalizer is None else normalizer.normalize_str(text)
            return text if splitter is None else "".join(piece for piece, _ in splitter.pre_tokenize_str(text))

        with refused(_CANNOT_ENCODE, VocabularyError):
            return seen(without) == seen(with_space)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns one list of ids per text.

        Where the pre-tokenizer drops spaces, the words that follow one keep the dummy prefix (it is their space) and
        the word that begins the text goes without.
        """
        if any(self._has_seam(text) for text in texts):
            return [self._encode_in_parts(text) for text in texts]
        return self._encode(texts)

    def _has_seam(self, text: str) -> bool:
        return (self._cuts_escapes and "<0x" in text) or NONCHARACTER in text

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        if not self._leading_lost:
            return self._run(self._bare, texts)
        cuts = [self._first_space(text) for text in texts]
        heads = self._run(self._bare, [text[:cut] for text, cut in zip(texts, cuts, strict=True)])
        tails = self._run(self._prefixed, [text[cut:] for text, cut in zip(texts, cuts, strict=True)])
        return [head + tail for head, tail in zip(heads, tails, strict=True)]

    def _first_space(self, text: str) -> int:
        if text[:1].isspace():
            return 0
        space = _SPACE.search(text) if self._inner_lost else None
        return space.start() if space else len(text)

    def _encode_in_parts(self, text: str) -> list[int]:
        # A name that only a hidden token or a byte piece has is cut in two, so that it is encoded as ordinary text.
        parts = self._encode(_SEAM.split(text)) if self._has_seam(text) else self._encode([text])
        return [token for part in parts for token in part]

    def _run(self, tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
        rows: list[list[int]] = []
        # An encoding takes 1 KB, whatever the text: forty thousand at a time would be a tenth of a build's memory.
        for first in range(0, len(texts), _BATCH):
            clean = [_scalar(text) for text in texts[first : first + _BATCH]]
            with refused(_CANNOT_ENCODE, VocabularyError):
                rows += [encoding.ids for encoding in tokenizer.encode_batch_fast(clean, add_special_tokens=False)]
        if not self._ids:
            return rows
        file_id = self._ids.get
        in_file = ([file_id(token, token) for token in row] for row in rows)
        return [[token for token in row if token >= 0] for row in in_file]

    def normalize(self, text: str) -> str:
        """Returns what the file's normaliser makes of a stretch of text without spaces."""
        normalizer = self._bare.normalizer
        if normalizer is None:
            return text
        with refused(_CANNOT_ENCODE, VocabularyError):
            return str(normalizer.normalize_str(_scalar(text)))

    def encode_bytes(self, data: bytes) -> list[int] | None:
        """Returns the model's merges over the byte table's characters, None where it has no byte table."""
        if not self._byte_level:
            return None
        with refused(_CANNOT_ENCODE, VocabularyError):
            ids = [token.id for token in self._bare.model.tokenize(characters_of(data))]
        in_file = [self._ids.get(token, token) for token in ids]
        return in_file if min(in_file, default=0) >= 0 else []


_Placed = tuple[int, int, int]
"""A token: its id in the file, the first character that it stands for, and the one after its last."""


class _Named(NamedTuple):
    """A row with private names.

    Attributes:
        row: the row as it was given.
        text: with private names.
        longer: where each name ends in `text`, and how much longer the row has become up to there.
        names: the part of the row that is a control token -> the token, and where its name begins in `text`.
    """

    row: Sequence[Part]
    text: str
    longer: Sequence[tuple[int, int]]
    names: Mapping[int, tuple[int, int]]


class JsonRowEncoder:
    """Encodes rows with the file as it is, but for its control tokens, which have names that no text has.

    A row in which a template wrote `<|end|>` is encoded with its private name at that place. So everything that the
    file says holds, at once: flags of added tokens, prefixes at the beginning and behind special tokens, splitting.

    Args:
        data: the file's JSON; it is not changed.
        added: its added tokens by id, with flags where a configuration file has some.
        tokens: which ids rows may become.

    Raises:
        VocabularyError: `tokenizers` refuses the components.
    """

    def __init__(self, data: Mapping[str, Any], added: Mapping[int, AddedToken], tokens: RowTokens) -> None:
        in_texts = tokens.speakable.copy()
        in_texts[list(tokens.literal.values())] = True
        copy, base_ids = text_only(data, added, in_texts)
        by_file = {entry["id"]: entry for entry in data.get("added_tokens") or ()}
        named = [
            {**by_file.get(token_id, {}), "id": token_id, "content": _hidden(token_id), "special": False}
            for token_id in tokens.controls.values()
        ]
        listed: list[dict[str, Any]] = [*copy["added_tokens"], *named]
        for entry in listed:
            token = added.get(entry["id"])
            given = dict.fromkeys(FLAGS, False) | {flag: bool(entry.get(flag)) for flag in FLAGS}
            if token is not None and token.flags is not None:
                given = {flag: flag in token.flags for flag in FLAGS}
            entry.update(given)
        copy["added_tokens"] = sorted(listed, key=lambda entry: int(entry["id"]))
        self._tokenizer = _load(copy)
        self._ids = _file_ids(self._tokenizer, copy, base_ids)
        self._single = {*tokens.controls.values(), *tokens.literal.values()}

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns one list of ids per text."""
        clean = [_no_names(text) for text in texts]
        with refused(_CANNOT_ENCODE, VocabularyError):
            encodings = self._tokenizer.encode_batch_fast(clean, add_special_tokens=False)
        if not self._ids:
            return [encoding.ids for encoding in encodings]
        in_file = ([self._ids.get(token, token) for token in encoding.ids] for encoding in encodings)
        return [[token for token in ids if token >= 0] for ids in in_file]

    def encode_parts(self, rows: Sequence[Sequence[Part]]) -> list[list[Run]]:
        """Returns the runs of every row."""
        named = [_with_names(row) for row in rows]
        encoded = self._encode([row.text for row in named])
        for at in range(len(named)):
            # A token that a template wrote is not found everywhere: not beside a letter if it is a word of its own, nor
            # without a space before it if its normal form begins with one. There it is text.
            while missed := _missed(named[at], encoded[at]):
                named[at] = _with_names(
                    [(text, None if part in missed else token) for part, (text, token) in enumerate(named[at].row)]
                )
                encoded[at] = self._encode([named[at].text])[0]
        return [self._runs(row, tokens) for row, tokens in zip(named, encoded, strict=True)]

    def _encode(self, texts: Sequence[str]) -> list[list[_Placed]]:
        with refused(_CANNOT_ENCODE, VocabularyError):
            encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        file_id = self._ids.get
        return [
            [
                (file_id(token, token), begin, end)
                for token, (begin, end) in zip(encoding.ids, encoding.offsets, strict=True)
            ]
            for encoding in encodings
        ]

    def _runs(self, row: _Named, tokens: Sequence[_Placed]) -> list[Run]:
        """The tokens of a row as runs of its text."""
        text = "".join(part for part, _ in row.row)
        ends = [end for end, _ in row.longer]
        grown = [0, *(growth for _, growth in row.longer)]

        def in_text(at: int) -> int:
            return at - grown[bisect_right(ends, at)]

        runs: list[Run] = []
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        done = 0

        def close(until: int) -> None:
            if until > done or ids:
                start = in_text(done)
                placed = [(max(in_text(begin) - start, 0), max(in_text(end) - start, 0)) for begin, end in offsets]
                runs.append(Run(text[start : in_text(until)], list(ids), placed))
                ids.clear()
                offsets.clear()

        for token, begin, end in tokens:
            if token in self._single:
                close(max(begin, done))
                runs.append(Run(text[in_text(max(begin, done)) : in_text(end)], [token]))
                done = end
            elif token >= 0:
                ids.append(token)
                offsets.append((begin, end))
        close(len(row.text))
        return runs


def _with_names(row: Sequence[Part]) -> _Named:
    """A row in which control tokens have their private names."""
    parts: list[str] = []
    longer: list[tuple[int, int]] = []
    names: dict[int, tuple[int, int]] = {}
    size = grown = 0
    for at, (text, token) in enumerate(row):
        written = _no_names(text) if token is None else _hidden(token)
        if token is not None:
            names[at] = token, size
        parts.append(written)
        size += len(written)
        grown += len(written) - len(text)
        if len(written) != len(text):
            longer.append((size, grown))
    return _Named(row, "".join(parts), longer, names)


def _missed(row: _Named, tokens: Sequence[_Placed]) -> set[int]:
    """The parts of a row that are control tokens, and were not found as such."""
    controls = {token for token, _ in row.names.values()}
    found: set[tuple[int, int]] = set()
    for token, begin, end in tokens:
        # A token may take the white space beside its name. An unknown one may stand for a part of a name, or for more.
        if token in controls and row.text[begin:end].strip() == _hidden(token):
            found.add((token, row.text.index(NONCHARACTER, begin)))
    return {part for part, name in row.names.items() if name not in found}


def _no_names(text: str) -> str:
    """A text in which no private name stands; a lone surrogate becomes U+FFFD."""
    if NONCHARACTER in text:
        text = re.sub(rf"{NONCHARACTER}(?=\d+{NONCHARACTER})", "\ufffe", text)
    return _scalar(text)


def _scalar(text: str) -> str:
    """Lone surrogates become U+FFFD: Rust strings cannot hold them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _load(data: Mapping[str, Any]) -> Tokenizer:
    with refused("tokenizers does not accept this tokenizer.json", VocabularyError):
        return Tokenizer.from_buffer(to_json(data))
