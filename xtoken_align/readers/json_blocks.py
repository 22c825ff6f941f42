"""The two large parts of a `tokenizer.json`, its vocabulary and its merges, with the bytes that state them.

They are nearly all of such a file. What encodes text is a copy of the file with few changes, in which both stand as
they are. Python objects for 280,000 merges would take 60 MB, and few files need any.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Hook = Callable[[list[tuple[str, Any]]], Any]

_VOCAB = re.compile(r'"vocab"\s*:\s*(?=\{)')
_KEY = re.compile(rb'"merges"\s*:\s*(?=\[\s*(?:\[\s*)?")')
_END = {True: re.compile(rb'"\s*\]\s*\]'), False: re.compile(rb'"\s*\]')}
_AT_END = {True: re.compile(rb'"\s*\]\s*\]\Z'), False: re.compile(rb'"\s*\]\Z')}
_FIRST_OF_PAIRS = re.compile(rb'[^"]*("\s*,\s*")')
_BETWEEN = {True: re.compile(rb'"\s*\]\s*,\s*\[\s*"'), False: re.compile(rb'"\s*,\s*"')}
_ESCAPED = re.compile(rb'\\["\\]')
_TAIL = 200
"""Bytes from the last merge to the end of its list, spaces included."""
_CONTROLS = re.compile(rb"[\x01-\x1f]")
_MARK = "\uffffmerges\uffff"
_VOCAB_MARK = "\uffffvocab\uffff"


class WrittenTable(dict[str, Any]):
    """A vocabulary as a file's JSON has it.

    Attributes:
        written: the JSON that it was read from, in UTF-8.
    """

    written: bytes = b""


@dataclass(frozen=True, slots=True)
class Merges:
    r"""A list of merges.

    Attributes:
        value: UTF-8, the halves of a merge with `\0` between them and `\0\0` between merges.
        paired: whether the file writes a merge as a list of two strings, or as `left right`.
    """

    value: bytes
    paired: bool

    def parsed(self) -> list[Any]:
        r"""The merges as the file's JSON has them.

        >>> Merges(b"a\0b\0\0ab\0c", paired=True).parsed(), Merges(b"a\0b", paired=False).parsed()
        ([['a', 'b'], ['ab', 'c']], ['a b'])
        """
        merges = self.value.decode("utf-8", "surrogatepass").split("\0\0")
        return [merge.split("\0") if self.paired else merge.replace("\0", " ") for merge in merges]

    def to_json(self) -> bytes:
        r"""The merges as JSON for `tokenizers`: `left right` wherever that is clear, which takes half of the memory.

        >>> Merges(b'a\0"\0\0a"\0c', paired=True).to_json()
        b'["a \\"","a\\" c"]'
        >>> Merges(b"a\0 ", paired=True).to_json()
        b'[["a"," "]]'
        """
        text = self.value.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
        if _CONTROLS.search(text):
            text = _CONTROLS.sub(lambda match: b"\\u%04x" % match[0][0], text)
        # `tokenizers` takes a line that begins with `#version` for the head of a file.
        if self.paired and (b" " in text or b"#version" in text):
            return b'[["' + text.replace(b"\0\0", b'"],["').replace(b"\0", b'","') + b'"]]'
        return b'["' + text.replace(b"\0\0", b'","').replace(b"\0", b" ") + b'"]'


def merges_value(merges: Merges | list[Any]) -> bytes:
    """The block of bytes of merges in either form; see `Merges`."""
    if isinstance(merges, Merges):
        return merges.value
    lines = ["\0".join(merge) if isinstance(merge, list) else merge.replace(" ", "\0", 1) for merge in merges]
    return "\0\0".join(lines).encode("utf-8", "surrogatepass")


def parse_blocks(data: bytes, hook: Hook | None = None) -> Any:
    """The JSON of a file; its model's `merges` are `Merges` and its `vocab` is a `WrittenTable` where they can be.

    Args:
        data: the file.
        hook: `object_pairs_hook` of `json.loads`.

    Raises:
        ValueError: it is not whole JSON.
    """
    found = _take_out(data)
    rest, merges = (data, None) if found is None else found
    with_table = _with_table(rest, hook)
    parsed, table = (json.loads(rest, object_pairs_hook=hook), None) if with_table is None else with_table
    model = parsed.get("model") if isinstance(parsed, dict) else None
    marked = model if isinstance(model, dict) else {}
    if (merges is not None and marked.get("merges") != _MARK) or (
        table is not None and marked.get("vocab") != _VOCAB_MARK
    ):
        return json.loads(data, object_pairs_hook=hook)
    if merges is not None:
        marked["merges"] = merges
    if table is not None:
        marked["vocab"] = table
    return parsed


def to_json(data: Any) -> bytes:
    """The JSON of a tokenizer, in which vocabulary and merges that are blocks are copied as such."""
    model = data["model"]
    blocks: dict[str, bytes] = {}
    if isinstance(model.get("vocab"), WrittenTable):
        blocks["vocab"] = model["vocab"].written
    if isinstance(model.get("merges"), Merges):
        blocks["merges"] = model["merges"].to_json()
    # {"a": 1} and {"model": {}} with the block "vocab" become {"a": 1, "model": {"vocab": ...}}.
    others = _dumps({key: data[key] for key in data if key != "model"})
    of_model = _dumps({key: model[key] for key in model if key not in blocks})
    members = [part[1:-1] for part in (of_model,) if part != b"{}"]
    members += [b'"%s": %s' % (key.encode(), block) for key, block in blocks.items()]
    return b"".join((others[:-1], b", " if others != b"{}" else b"", b'"model": {', b", ".join(members), b"}}"))


def _dumps(value: Any) -> bytes:
    # A name with a lone surrogate is no UTF-8, and tokenizers says so.
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _with_table(data: bytes, hook: Hook | None) -> tuple[Any, WrittenTable] | None:
    """The parsed file with a mark in place of its vocabulary, and this; None where there is none to be found."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    key = _VOCAB.search(text)
    if key is None:
        return None
    try:
        entries, end = json.JSONDecoder(object_pairs_hook=hook).raw_decode(text, key.end())
    except json.JSONDecodeError:
        return None
    if not isinstance(entries, dict):
        return None
    table = WrittenTable(entries)
    table.written = text[key.end() : end].encode()
    return json.loads(text[: key.end()] + json.dumps(_VOCAB_MARK) + text[end:], object_pairs_hook=hook), table


def _take_out(data: bytes) -> tuple[bytes, Merges] | None:
    """The file with a mark in place of its merges, and these; None where they are written in an uncommon way."""
    key = _KEY.search(data)
    if key is None or b"\0" in data or b"\1" in data or b"\2" in data:
        return None
    start = data.index(b'"', key.end()) + 1
    paired = data[key.end() : start].count(b"[") == 2
    # In most files the last list is that of the merges: it is tried first, and is told by what it would hold.
    stop = data.rfind(b"]") + 1
    end = _AT_END[paired].search(data, max(start, stop - _TAIL), stop)
    value = _value(_masked(data[start : end.start()]), paired=paired) if end is not None else None
    if value is None:
        masked = _masked(data[start:])
        place = _closing_quote(masked, paired=paired)
        if place is None:
            return None
        value, stop = _value(masked[: place[0]], paired=paired), start + place[1]
    if value is None:
        return None
    return data[: key.end()] + json.dumps(_MARK).encode() + data[stop:], Merges(value, paired)


def _masked(text: bytes) -> bytes:
    """A text in which every quote begins or ends a string: escaped ones are masked, in two bytes as before."""
    return _ESCAPED.sub(lambda match: b"\1\1" if match[0] == b"\\\\" else b"\2\2", text)


def _closing_quote(masked: bytes, *, paired: bool) -> tuple[int, int] | None:
    """Where the last string ends, and the list."""
    # Of `"]]"` the first quote looks like the end. From inside of the first string on, the quotes before an end are
    # even in number.
    quotes, counted = 0, 0
    for match in _END[paired].finditer(masked):
        quotes += masked.count(b'"', counted, match.start())
        counted = match.start()
        if quotes % 2 == 0:
            return match.start(), match.end()
    return None


def _value(body: bytes, *, paired: bool) -> bytes | None:
    r"""The strings between the first quote and the last as a `Merges` has them.

    Of `a","b"],["ab","c` the separators are `"],["` and `","`: the value is a \0 b \0\0 ab \0 c.
    """
    first = _FIRST_OF_PAIRS.match(body) if paired else None
    between = _BETWEEN[paired].search(body, first.end() if first is not None else 0)
    if between is not None:
        body = body.replace(between[0], b"\0\0")
    count = body.count(b"\0\0") + 1
    if not paired:
        if body.count(b" ") != count:
            return None
        body = body.replace(b" ", b"\0")
    elif first is not None:
        body = body.replace(first[1], b"\0")
    if b'"' in body or b"\\u0000" in body or b"\0\0\0" in body or body.count(b"\0") != 3 * count - 2:
        return None
    if re.search(rb"[\x03-\x1f]", body):
        return None
    if b"\\" not in body:
        body.decode()  # for its errors
        return body.replace(b"\1\1", b"\\").replace(b"\2\2", b'"')
    text = b'"' + body.replace(b"\1\1", b"\\\\").replace(b"\2\2", b'\\"') + b'"'
    value: str = json.loads(text.decode(), strict=False)
    return value.encode("utf-8", "surrogatepass")
