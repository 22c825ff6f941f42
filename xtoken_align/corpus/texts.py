"""Streaming texts from files in constant memory: plain text, JSON lines and Parquet, compressed or not, and stdin."""

from __future__ import annotations

import gzip
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from os import PathLike, fspath
from pathlib import Path
from typing import IO, Any

from ..errors import CorpusError, MissingExtraError

CHUNK_BYTES = 1 << 20
_LONGEST_CHUNK = 4 << 20
_STDIN = "-"
# After a line's end and before text: no tokenizer's split reaches across. Runs of empty lines stay together.
_LINE_START = re.compile(rb"\n(?=[^\s])")
_WORD_END = re.compile(rb"(?<=[^\s])(?=\s)")

Progress = Callable[[int], None]
"""Is told how many more bytes of the files on the disk have been read."""


def read_texts(
    paths: Sequence[str | PathLike[str]], *, field: str = "text", progress: Progress | None = None
) -> Iterator[str]:
    """Yields texts, one after another.

    A JSON line or a Parquet row is a text. Plain text comes in stretches of about a megabyte that begin where a line
    begins; a line longer than that is cut between words.

    Args:
        paths: files, told by their endings: `.jsonl`, `.parquet`, anything else is plain text; text and JSON lines
            also `.gz` or `.zst`. `-` is stdin.
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
        endings = [suffix.lower() for suffix in Path(name).suffixes]
        packed = endings.pop() if endings and endings[-1] in (".gz", ".zst") else ""
        form = endings[-1] if endings else ""
        if form == ".parquet" and not packed:
            yield from _parquet(name, field, progress)
            continue
        with _opened(name, packed, progress) as stream:
            yield from _json_lines(stream, name, field) if form in (".jsonl", ".ndjson") else _plain(stream, name)


class _Counting:
    """A binary stream that reports what is read from it."""

    def __init__(self, stream: IO[bytes], progress: Progress) -> None:
        self._stream = stream
        self._progress = progress

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._progress(len(data))
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _opened(name: str, packed: str, progress: Progress | None) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked; whatever goes wrong while they are read names the file."""
    try:
        with nullcontext(sys.stdin.buffer) if name == _STDIN else Path(name).open("rb") as raw:
            counted: Any = raw if progress is None else _Counting(raw, progress)
            if packed == ".gz":
                yield gzip.GzipFile(fileobj=counted, mode="rb")
            elif packed == ".zst":
                yield _zstandard(counted)
            else:
                yield counted
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CorpusError(f"{name} is no whole {packed} file: {error}") from error
    except OSError as error:
        raise CorpusError(f"cannot read {name}: {error.strerror or error}") from error


def _zstandard(stream: Any) -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise MissingExtraError("Reading .zst files", "corpus") from error
    return _Unpacked(zstandard.ZstdDecompressor().stream_reader(stream), zstandard.ZstdError)


class _Unpacked:
    """A zstandard reader whose errors are those of a damaged file."""

    def __init__(self, reader: Any, damage: type[Exception]) -> None:
        self._reader = reader
        self._damage = damage

    def read(self, size: int = -1) -> bytes:
        try:
            return bytes(self._reader.read(size))
        except self._damage as error:
            raise EOFError(str(error)) from error


def _plain(stream: IO[bytes], name: str) -> Iterator[str]:
    rest = b""
    done = 0
    while data := stream.read(CHUNK_BYTES):
        rest += data
        cut = _last_cut(rest)
        if cut:
            yield _decoded(rest[:cut], name, done)
            done += cut
            rest = rest[cut:]
    if rest:
        yield _decoded(rest, name, done)


def _last_cut(data: bytes) -> int:
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
    # No word's end either: between two characters, so that at least UTF-8 stays whole.
    while end > 1 and data[end - 1] & 0xC0 == 0x80:
        end -= 1
    return end - 1


def _decoded(data: bytes, name: str, offset: int) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise CorpusError(f"{name} is not UTF-8 at byte {offset + error.start}: convert it, or leave it out") from error


def _lines(stream: IO[bytes]) -> Iterator[bytes]:
    rest = b""
    while data := stream.read(CHUNK_BYTES):
        *lines, rest = (rest + data).split(b"\n")
        yield from lines
    if rest:
        yield rest


def _json_lines(stream: IO[bytes], name: str, field: str) -> Iterator[str]:
    for number, line in enumerate(_lines(stream), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CorpusError(f"line {number} of {name} is not JSON: {error}") from error
        if not isinstance(entry, dict) or not isinstance(entry.get(field), str):
            found = ", ".join(entry) if isinstance(entry, dict) else type(entry).__name__
            raise CorpusError(f"line {number} of {name} has no text under {field!r} but {found}: name it with --field")
        yield entry[field]


def _parquet(name: str, field: str, progress: Progress | None) -> Iterator[str]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise MissingExtraError("Reading .parquet files", "corpus") from error
    try:
        with parquet.ParquetFile(name) as file:
            columns = file.schema_arrow.names
            if field not in columns:
                raise CorpusError(f"{name} has no column {field!r} but {', '.join(columns)}: name it with --field")
            total, rows = Path(name).stat().st_size, max(file.metadata.num_rows, 1)
            for batch in file.iter_batches(batch_size=1024, columns=[field]):
                yield from (text for text in batch.column(0).to_pylist() if isinstance(text, str))
                if progress is not None:
                    progress(total * batch.num_rows // rows)
    except (ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CorpusError(f"cannot read {name} as Parquet: {reason}") from error
