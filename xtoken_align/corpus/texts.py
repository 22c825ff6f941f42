"""Reading a corpus: files of several formats as one stream of texts, in pieces that any encoder can take."""

from __future__ import annotations

import gzip
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Protocol

from ..errors import CorpusError, MissingExtraError
from ..limits import MAX_EXPANSION, MAX_TEXT_BYTES, UNPACKS_FREELY

LONGEST_PIECE = 1 << 18
"""Characters. fancy-regex, which runs the split patterns of rank files, gives up at a million pending branches, and a
million spaces in a row are as many: tiktoken then panics, and raises nothing that Python code can catch by name."""

# After a line's end and before text, and after a word and before a space: no tokenizer's split reaches across.
_CUTS = (re.compile(r"\n(?=\S)"), re.compile(r"(?<=\S)(?=\s)"))


def pieces(text: str, longest: int = LONGEST_PIECE) -> Iterator[str]:
    r"""Yields a text in pieces that begin where a line begins, else where a word ends, else anywhere.

    Args:
        text: the text.
        longest: characters in a piece at most, at least 2.

    Yields:
        Pieces that join to the text; nothing for an empty one.

    >>> list(pieces("one\ntwo three", 6))
    ['one\n', 'two', ' three']
    """
    start = 0
    while len(text) - start > longest:
        end = _last_cut(text, start + longest // 2, start + longest)
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def _last_cut(text: str, earliest: int, latest: int) -> int:
    for pattern in _CUTS:
        last = 0
        for match in pattern.finditer(text, earliest, latest):
            last = match.end()
        if last:
            return last
    return latest


PACKED = (".gz", ".zst")
"""Endings of files that are packed."""

CHUNK_BYTES = 1 << 20
_LONGEST_CHUNK = 4 << 20
# Rows of a Parquet file in memory at a time: documents of a megabyte are no rarity.
_ROWS = 128
_STDIN = "-"
_JSON_LINES = (".jsonl", ".ndjson")
_BY_FIELD = "(--field, or text_field in a file)"
# After a line's end and before text: no tokenizer's split reaches across. Empty lines and Unicode's spaces (below, as
# UTF-8) stay with the line's end before them. A character of which only some bytes are read does not count as text.
_WIDE_SPACE = rb"\xc2[\x85\xa0]|\xe1\x9a\x80|\xe2\x80[\x80-\x8a\xa8\xa9\xaf]|\xe2\x81\x9f|\xe3\x80\x80"
_LINE_START = re.compile(rb"\n(?!" + _WIDE_SPACE + rb")(?=[\x00-\x08\x0e-\x7f]|[\x80-\xff][\s\S]{2})(?=\S)")
_WORD_END = re.compile(rb"(?<=[^\s])(?=\s)")

Progress = Callable[[int], None]
"""Is told how many more bytes of the files on the disk have been read."""


class Readable(Protocol):
    """What the formats need of a binary stream."""

    def read(self, size: int, /) -> bytes:
        """Returns some bytes, at the end of the stream none."""
        ...


def read_texts(
    paths: Sequence[str | PathLike[str]], *, field: str = "text", progress: Progress | None = None
) -> Iterator[str]:
    """Yields texts, one after another.

    A row of a JSON or Parquet file is a text, null is none. Plain text comes in stretches of about a megabyte that
    begin where a line begins; a line longer than that is cut between words.

    Args:
        paths: files, told by their endings: `.jsonl`, `.json` with a list of rows, `.parquet`, anything else is plain
            text; all but Parquet also `.gz` or `.zst`. `-` is stdin.
        field: the field, or the column, that holds the text.
        progress: is told of the bytes read.

    Yields:
        Texts, in the order of the files.

    Raises:
        CorpusError: a file cannot be read, is damaged, is not UTF-8, or has no such field.
        MissingExtraError: a format's library is not installed.
    """
    for path in paths:
        name = fspath(path)
        form, packed = _form_of(name)
        if form == ".parquet" and not packed:
            yield from _parquet(name, field, progress)
            continue
        with _opened(name, packed, progress) as stream:
            entries = _json_entries(stream, name, form)
            yield from _plain(stream, name) if entries is None else _texts_of(entries, field)


def _form_of(name: str) -> tuple[str, str]:
    """A file's ending, and that of what it is packed with: `.jsonl` and `.gz`."""
    endings = [suffix.lower() for suffix in Path(name).suffixes]
    packed = endings.pop() if endings and endings[-1] in PACKED else ""
    return endings[-1] if endings else "", packed


def read_rows(
    paths: Sequence[str | PathLike[str]], *, field: str = "text", progress: Progress | None = None
) -> Iterator[dict[str, Any]]:
    """Yields rows to train on, texts and chats.

    Args:
        paths: files, as `read_texts` takes them.
        field: the field that holds a row's text, or its chat.
        progress: is told of the bytes read, but for Parquet files with chats.

    Yields:
        `{"text": ..., "ends": ...}`, where `ends` says whether the text ends where the row ends: plain text comes in
        stretches. Or `{"messages": [...], "tools": ...}`: a row without a text under `field` and with `messages`.

    Raises:
        CorpusError: a file cannot be read, is damaged, is not UTF-8, or a row is neither.
        MissingExtraError: a format's library is not installed.
    """
    for path in paths:
        name = fspath(path)
        form, packed = _form_of(name)
        if form == ".parquet" and not packed:
            if (columns := _chat_columns(name, field)) is None:
                yield from ({"text": text, "ends": True} for text in _parquet(name, field, progress))
            else:
                yield from _rows_of(_numbered(_parquet_entries(name, columns), name), field, tables=True)
            continue
        with _opened(name, packed, progress) as stream:
            entries = _json_entries(stream, name, form)
            yield from _stretches(_plain(stream, name)) if entries is None else _rows_of(entries, field)


def _stretches(texts: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Stretches of one text, of which the last one ends it."""
    before: str | None = None
    for text in texts:
        if before is not None:
            yield {"text": before, "ends": False}
        before = text
    if before is not None:
        yield {"text": before, "ends": True}


def _rows_of(entries: Iterable[tuple[str, Any]], field: str, *, tables: bool = False) -> Iterator[dict[str, Any]]:
    for where, entry in entries:
        row = row_of(entry, field, where, tables=tables)
        if row is not None:
            yield row


def row_of(entry: Any, field: str, where: str, *, tables: bool = False) -> dict[str, Any] | None:
    """A row to train on from an entry of a file or a data set; None where its text is null.

    Args:
        entry: the entry.
        field: the field that holds a text, or a chat.
        where: the entry's place, for messages.
        tables: whether messages come from tables, which give each the keys of all: what is null in them is left out.

    Raises:
        CorpusError: it has neither a text nor a chat.

    >>> row_of({"messages": [{"role": "user", "content": "Hi", "tool_calls": None}]}, "text", "row 1", tables=True)
    {'messages': [{'role': 'user', 'content': 'Hi'}], 'tools': None}
    """
    if isinstance(entry, Mapping):
        value = entry.get(field)
        if isinstance(value, str) and not (field == "messages" and value.lstrip().startswith("[")):
            return {"text": value, "ends": True}
        chat = entry.get("messages") if value is None else value
        if isinstance(chat, str):
            chat = _parsed(chat, where)
        if isinstance(chat, list) and chat:
            _check_chat(chat, where)
            return {"messages": _without_nulls(chat) if tables else chat, "tools": entry.get("tools")}
        if field in entry and value is None:
            return None
    raise CorpusError(
        f"{where} has no text under {field!r} and no chat under 'messages', but "
        f"{_instead(entry, field, 'messages')}: name the field that has one "
        "(text_field)"
    )


def _check_chat(chat: Sequence[Any], where: str) -> None:
    for number, message in enumerate(chat):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            instead = _some(list(message)) if isinstance(message, Mapping) else type(message).__name__
            raise CorpusError(
                f"message {number} of {where} has no role but {instead}: a message is {{'role': ..., 'content': ...}}"
            )


def _without_nulls(value: Any) -> Any:
    """A message without what is null in it."""
    if isinstance(value, Mapping):
        return {name: _without_nulls(each) for name, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value


def _parsed(text: str | bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{where} is not JSON: {error}") from error


class _Counting:
    """A binary stream that reports what is read from it."""

    def __init__(self, stream: Readable, progress: Progress) -> None:
        self._stream = stream
        self._progress = progress

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._progress(len(data))
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _opened(name: str, packed: str, progress: Progress | None) -> Iterator[Readable]:
    """The bytes of a file, unpacked; whatever goes wrong while they are read names the file."""
    try:
        with nullcontext(sys.stdin.buffer) if name == _STDIN else Path(name).open("rb") as raw:
            counted: Any = raw if progress is None else _Counting(raw, progress)
            if packed == ".gz":
                yield gzip.GzipFile(fileobj=counted, mode="rb")
            elif packed == ".zst":
                yield _Zstandard(counted)
            else:
                yield counted
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CorpusError(f"{name} is no whole {packed} file: {error}") from error
    except OSError as error:
        raise CorpusError(f"cannot read {name}: {error.strerror or error}") from error


class _Zstandard:
    """Unpacks frame after frame; the library's own reader takes a file that breaks off for one that ends."""

    # A packed block of four bytes can hold 128 KiB: a slice of this size unpacks to 4 MiB at most.
    _SLICE = 1 << 7
    # What `zstd --long=31` writes needs this much; the library refuses more than 128 MiB unless it is told.
    _WIDEST_WINDOW = 1 << 31

    def __init__(self, stream: Any) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise MissingExtraError("Reading .zst files", "corpus") from error
        self._damage = zstandard.ZstdError
        self._unpacker = zstandard.ZstdDecompressor(max_window_size=self._WIDEST_WINDOW)
        self._stream = stream
        self._frame: Any = None
        self._packed = b""
        self._ready = b""

    def read(self, size: int) -> bytes:
        while not self._ready and self._refill():
            self._ready = self._unpack()
        data, self._ready = self._ready[:size], self._ready[size:]
        return data

    def _refill(self) -> bool:
        if not self._packed:
            self._packed = self._stream.read(self._SLICE)
        if not self._packed and self._frame is not None:
            raise EOFError("it ends in the middle of a frame")
        return bool(self._packed)

    def _unpack(self) -> bytes:
        frame = self._unpacker.decompressobj() if self._frame is None else self._frame
        try:
            data: bytes = frame.decompress(self._packed)
        except self._damage as error:
            raise EOFError(str(error)) from error
        self._packed = frame.unused_data if frame.eof else b""
        self._frame = None if frame.eof else frame
        return data


def _plain(stream: Readable, name: str) -> Iterator[str]:
    rest = b""
    done = lines = 0
    while data := stream.read(CHUNK_BYTES):
        rest += data
        cut = _last_line_end(rest)
        if cut:
            yield _decoded(rest[:cut], name, done, lines)
            done += cut
            lines += rest.count(b"\n", 0, cut)
            rest = rest[cut:]
    if rest:
        yield _decoded(rest, name, done, lines)


def _last_line_end(data: bytes) -> int:
    """Where to cut: at the last line's start, or in a huge line at its last word's end; 0 to read on."""
    end = len(data)
    # Only the end is searched: a cut there keeps chunks long.
    for start in (max(0, end - (1 << 16)), 0):
        cuts = [match.end() for match in _LINE_START.finditer(data, start)]
        if cuts:
            return cuts[-1]
    if end < _LONGEST_CHUNK:
        return 0
    words = [match.start() for match in _WORD_END.finditer(data, max(1, end - (1 << 16)))]
    if words:
        return words[-1]
    # No word's end either: before the last character, so that at least UTF-8 stays whole. It has four bytes at most.
    starts = [at for at in range(end - 1, end - 5, -1) if data[at] & 0xC0 != 0x80]
    return starts[0] if starts else end


def _decoded(data: bytes, name: str, offset: int, lines: int) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = lines + data.count(b"\n", 0, error.start) + 1
        raise CorpusError(
            f"{name} is not UTF-8 at byte {offset + error.start} (line {line}): convert it, or leave it out"
        ) from error


def _lines(stream: Readable, name: str) -> Iterator[bytes]:
    rest = b""
    while data := stream.read(CHUNK_BYTES):
        *lines, rest = (rest + data).split(b"\n")
        yield from lines
        if len(rest) > MAX_TEXT_BYTES:
            raise CorpusError(f"{name} has a line of over {MAX_TEXT_BYTES:,} bytes: one text is not that long")
    if rest:
        yield rest


def _json_entries(stream: Readable, name: str, form: str) -> Iterator[tuple[str, Any]] | None:
    """What a file of JSON lines or a list of rows holds, each with its place for messages; None for plain text."""
    if form in _JSON_LINES:
        return _json_lines(stream, name)
    return _numbered(_json_list(stream, name), name) if form == ".json" else None


def _numbered(rows: Iterable[Any], name: str) -> Iterator[tuple[str, Any]]:
    return ((f"row {number} of {name}", row) for number, row in enumerate(rows, start=1))


def _json_lines(stream: Readable, name: str) -> Iterator[tuple[str, Any]]:
    """The values of the lines that are not empty."""
    for number, line in enumerate(_lines(stream, name), start=1):
        if line.strip():
            where = f"line {number} of {name}"
            yield where, _parsed(line, where)


def _json_list(stream: Readable, name: str) -> list[Any]:
    """The rows of a `.json` file."""
    content = b""
    while data := stream.read(CHUNK_BYTES):
        content += data
        if len(content) > MAX_TEXT_BYTES:
            raise CorpusError(f"{name} has more than {MAX_TEXT_BYTES:,} bytes: write its rows as JSON lines (.jsonl)")
    rows = _parsed(content, name)
    if not isinstance(rows, list):
        raise CorpusError(f"{name} holds no list of rows but {type(rows).__name__}: JSON lines end in .jsonl")
    return rows


def _texts_of(entries: Iterable[tuple[str, Any]], field: str) -> Iterator[str]:
    for where, entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get(field, 0), str | None):
            raise CorpusError(f"{where} has no text under {field!r} but {_instead(entry, field)}: name it {_BY_FIELD}")
        if entry[field] is not None:
            yield entry[field]


def _instead(entry: Any, *asked: str) -> str:
    """What a row has in place of what was asked for.

    >>> _instead({"id": 7, "text": 3}, "text"), _instead([1], "text")
    ('id, text (3)', 'list')
    """
    if not isinstance(entry, Mapping):
        return type(entry).__name__
    return _some([f"{name} ({entry[name]!r:.20})" if name in asked else name for name in entry])


def _some(names: Sequence[str]) -> str:
    shown = 10
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def _parquet(name: str, field: str, progress: Progress | None) -> Iterator[str]:
    try:
        from pyarrow import ArrowException, parquet, types
    except ImportError as error:
        raise MissingExtraError("Reading .parquet files", "corpus") from error
    try:
        with parquet.ParquetFile(name) as file:
            columns = file.schema_arrow.names
            if field not in columns:
                raise CorpusError(f"{name} has no column {field!r} but {_some(columns)}: name it {_BY_FIELD}")
            kind = file.schema_arrow.field(field).type
            if "string" not in str(getattr(kind, "value_type", kind)) or types.is_nested(kind):
                raise CorpusError(f"{name} has {kind} in its column {field!r}, not text: name another {_BY_FIELD}")
            stored = [file.schema.column(place).path for place in range(len(file.schema))].index(field)
            groups = map(file.metadata.row_group, range(file.metadata.num_row_groups))
            if sum(group.column(stored).total_uncompressed_size for group in groups) > _unpacked_at_most(name):
                raise _unpacks_too_far(name)
        # Texts that repeat are kept once: a few bytes can say a text of megabytes a thousand times.
        with parquet.ParquetFile(name, read_dictionary=[field]) as file:
            total, rows, left = Path(name).stat().st_size, max(file.metadata.num_rows, 1), _unpacked_at_most(name)
            for batch in file.iter_batches(batch_size=_ROWS, columns=[field]):
                column = batch.column(0)
                left -= _text_bytes(column)
                if left < 0:
                    raise _unpacks_too_far(name)
                texts = (each.as_py() for each in column)
                yield from (text for text in texts if isinstance(text, str))
                if progress is not None:
                    progress(total * batch.num_rows // rows)
    except (ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CorpusError(f"cannot read {name} as Parquet: {reason}") from error


def _chat_columns(name: str, field: str) -> list[str] | None:
    """The columns of a Parquet file that make its chats; None where `field` is no nested column and there are none."""
    try:
        from pyarrow import ArrowException, parquet, types
    except ImportError as error:
        raise MissingExtraError("Reading .parquet files", "corpus") from error
    try:
        schema = parquet.read_schema(name)
    except (ArrowException, OSError) as error:
        raise CorpusError(f"cannot read {name} as Parquet: {str(error).splitlines()[0]}") from error
    chat = field if field in schema.names else "messages"
    if chat not in schema.names or (chat == field and not types.is_nested(schema.field(chat).type)):
        return None
    return [column for column in (chat, "tools") if column in schema.names]


def _parquet_entries(name: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file, of some columns."""
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(name) as file:
            groups = map(file.metadata.row_group, range(file.metadata.num_row_groups))
            stored = [group.column(place) for group in groups for place in range(group.num_columns)]
            of_chats = [part for part in stored if part.path_in_schema.partition(".")[0] in columns]
            if sum(part.total_uncompressed_size for part in of_chats) > _unpacked_at_most(name):
                raise _unpacks_too_far(name)
            for batch in file.iter_batches(batch_size=_ROWS, columns=list(columns)):
                yield from batch.to_pylist()
    except (ArrowException, OSError) as error:
        raise CorpusError(f"cannot read {name} as Parquet: {str(error).splitlines()[0]}") from error


def _unpacked_at_most(name: str) -> int:
    """The bytes of text that a Parquet file may hold."""
    return max(UNPACKS_FREELY, MAX_EXPANSION * Path(name).stat().st_size)


def _unpacks_too_far(name: str) -> CorpusError:
    return CorpusError(
        f"{name} holds more than {_unpacked_at_most(name):,} bytes, {MAX_EXPANSION} times its size: no text is packed "
        "as tightly; write it as JSON lines if it is one"
    )


def _text_bytes(column: Any) -> int:
    """How many bytes the texts of a column have, those of a dictionary counted each time that they stand there."""
    from pyarrow import compute

    # The texts `ab` and `c` of a dictionary, at the places 0 0 1: lengths 2 1, so 2 2 1 and 5 together.
    if not hasattr(column, "dictionary"):
        return compute.sum(compute.binary_length(column)).as_py() or 0
    lengths = compute.binary_length(column.dictionary)
    return compute.sum(lengths.take(column.indices)).as_py() or 0
