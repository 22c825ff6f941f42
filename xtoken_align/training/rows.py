"""Rows of a run: from what `texts` names to data sets on the disk, and how a row is labelled.

From top to bottom: the sources that `texts` names, the rows that are read from them, which rows are held out, and what
the student is trained on in a row.
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np

from ..corpus.texts import PACKED, pieces, read_rows, row_of
from ..errors import CorpusError, MissingExtraError
from ..files import kind_of
from ..read import read_vocab
from ..spans.batch import SpanCollator
from ..spans.spans import IGNORED
from ..spans.units import encode_texts
from ..vocab.vocab import Vocab
from .config import DistillConfig, StudentConfig, TeacherConfig, refuse, template_of, tokenizer_source

HUB = "hf://"

_READABLE = (".txt", ".text", ".md", ".rst", ".jsonl", ".ndjson", ".json", ".parquet")
"""Endings of the files that are taken from a folder; packed ones too."""

_TEXTS = {"text": "large_string", "ends": "bool"}
_CHATS = {"messages": "large_string", "tools": "large_string"}
"""The columns of kept rows. Messages are JSON: columns of their own would give every message every other one's keys."""

Progress = Callable[[int], object]
"""Is told how many rows have been read."""


# Sources


def sources_of(names: Sequence[str]) -> list[str]:
    """Files and Hub data sets that names stand for: a folder for the readable files in it, a pattern for what fits.

    Args:
        names: files, folders, patterns such as `corpus/**/*.jsonl`, `hf://owner/name`, or `-` for stdin.

    Raises:
        CorpusError: nothing is there under a name; every such name is told.
    """
    sources: list[str] = []
    missing: list[str] = []
    for name in names:
        path = Path(name).expanduser()
        if name == "-" or name.startswith(HUB):
            sources.append(name)
        elif kind_of(path) == "folder":
            inside = [str(file) for file in sorted(path.rglob("*")) if _is_readable(file, path)]
            if not inside:
                missing.append(f"the folder {name} has no files that end in {', '.join(_READABLE)}: name a pattern")
            sources += inside
        elif kind_of(path) is not None:
            sources.append(str(path))
        elif any(character in name for character in "*?["):
            matches = glob.glob(str(path), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
            fitting = [file for file in sorted(matches) if kind_of(Path(file)) == "file"]
            if not fitting:
                missing.append(f"no file fits the pattern {name}: it counts from the folder that the run starts in")
            sources += fitting
        else:
            missing.append(f"there is no file {name}: name files with texts, from the folder that the run starts in")
    if missing:
        raise CorpusError(missing[0] if len(missing) == 1 else "\n  ".join([f"{len(missing)} mistakes:", *missing]))
    # A file that a folder and a pattern name is read once.
    return list(dict.fromkeys(sources))


def _is_readable(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    endings = [suffix.lower() for suffix in file.suffixes]
    if endings and endings[-1] in PACKED:
        endings.pop()
    return not hidden and bool(endings) and endings[-1] in _READABLE and kind_of(file) == "file"


@dataclass(frozen=True, kw_only=True)
class HubTexts:
    """A data set of the Hub: `hf://OWNER/NAME@REVISION/CONFIG/SPLIT`, of which all behind the name may be left out.

    Attributes:
        repository: `OWNER/NAME`.
        revision: a branch, tag or commit.
        config: one of the data set's configurations.
        split: `train` unless another one is named.

    >>> HubTexts.of("hf://HuggingFaceTB/smoltalk@main/all/test")
    HubTexts(repository='HuggingFaceTB/smoltalk', revision='main', config='all', split='test')
    >>> HubTexts.of("hf://datasets/me/notes")
    HubTexts(repository='me/notes', revision=None, config=None, split='train')
    """

    repository: str
    revision: str | None = None
    config: str | None = None
    split: str = "train"

    @classmethod
    def of(cls, name: str) -> HubTexts:
        """The data set that a name stands for.

        Raises:
            CorpusError: it is not of that form.
        """
        parts = name.removeprefix(HUB).removeprefix("datasets/").split("/")
        if not 2 <= len(parts) <= 4 or not all(parts):
            raise CorpusError(
                f"{name} names no data set: expected hf://OWNER/NAME, with @REVISION, /CONFIG and /SPLIT behind it if "
                "need be"
            )
        repository, _, revision = parts[1].partition("@")
        config, split = [*parts[2:], None, None][:2]
        return cls(
            repository=f"{parts[0]}/{repository}", revision=revision or None, config=config, split=split or "train"
        )


def _hub_rows(name: str, field: str) -> Iterator[dict[str, Any]]:
    """The rows of a data set of the Hub, as they are downloaded."""
    datasets = _datasets()
    asked = HubTexts.of(name)
    number = 0
    try:
        entries = datasets.load_dataset(
            asked.repository, asked.config, split=asked.split, revision=asked.revision, streaming=True
        )
        for number, entry in enumerate(entries, start=1):
            row = row_of(entry, field, f"row {number} of {name}", tables=True)
            if row is not None:
                yield row
    # A Hub that is out of reach, closed or without this data set: errors of several libraries, all of these kinds.
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().split("\n")[0]
        raise CorpusError(
            f"cannot read {name} from the Hub ({reason}): see that it exists and that this machine is online, or name "
            "files"
        ) from error


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("Training", "train") from error
    return datasets


def hashes_of(names: Sequence[str]) -> dict[str, str]:
    """A hash of each file's bytes; what is no file has none."""
    hashes = {}
    for name in names:
        path = Path(name)
        if path.is_file():
            facts = path.stat()
            hashes[name] = _hash_of(path.resolve(), facts.st_size, facts.st_mtime_ns)
    return hashes


@lru_cache(maxsize=1024)
def _hash_of(path: Path, size: int, changed: int) -> str:  # noqa: ARG001 - a file that was changed is read again
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
    return f"content {digest}"


# Rows


def read_sources(names: Sequence[str], field: str, characters: int) -> Iterator[dict[str, Any]]:
    """The rows of some sources; long texts are cut into several rows, and `ends` says which of them ends its text.

    Args:
        names: of `sources_of`.
        field: the field that holds a text, or a chat.
        characters: the most of a row with a text.

    Raises:
        CorpusError: a source cannot be read, there are both texts and chats, or there is nothing.
    """
    form = None
    for name in names:
        rows = _hub_rows(name, field) if name.startswith(HUB) else read_rows([name], field=field)
        for row in rows:
            its_form = "messages" if "messages" in row else "text"
            if its_form != (form or its_form):
                raise CorpusError(
                    f"{name} has {_NAMES[its_form]}, but the rows before are {_NAMES[form or '']}: a run learns from "
                    "either; name those of one form"
                )
            cut = [row] if its_form == "messages" else _pieces_of(row, characters)
            for piece in cut:
                form = its_form
                yield piece
    if form is None:
        # A data set without rows cannot be read back.
        raise CorpusError(f"there is no text in {', '.join(names)}: name files that have some")


_NAMES = {"text": "texts", "messages": "chats"}


def _pieces_of(row: Mapping[str, Any], characters: int) -> Iterator[dict[str, Any]]:
    r"""The rows that a text becomes: of the pieces "ab", " cd" and "\n" the first two, of which the second ends it."""
    spoken = [piece for piece in pieces(row["text"], characters) if piece.strip()]
    for number, piece in enumerate(spoken, start=1):
        yield {"text": piece, "ends": row["ends"] and number == len(spoken)}


def make_rows(
    config: DistillConfig, folder: Path, processes: int = 1, progress: Progress | None = None
) -> tuple[Any, Any]:
    """The rows to train on and those to measure on, as data sets that are read from the disk.

    Args:
        config: the run's.
        folder: where they are kept; what is there already is taken from there.
        processes: among which those to measure on can be shared out.
        progress: is told how many rows have been read.

    Raises:
        CorpusError: a source cannot be read, or there are no rows.
        MissingExtraError: `datasets` is not installed.
    """
    datasets = _datasets()
    names = sources_of(config.texts)
    given = (tuple(names), tuple(hashes_of(names).items()), config.text_field, config.characters)
    # What is read from stdin is plain text, and can be read once.
    first = {} if names[0] == "-" else next(read_sources(names, config.text_field, config.characters))
    columns = _CHATS if "messages" in first else _TEXTS
    datasets.disable_progress_bars()
    try:
        rows = datasets.Dataset.from_generator(
            _kept_rows,
            gen_kwargs={"given": given, "told": _Told(progress)},
            features=datasets.Features({name: datasets.Value(kind) for name, kind in columns.items()}),
            cache_dir=str(folder),
        )
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, (CorpusError, MissingExtraError)):
            raise error.__cause__ from error
        raise
    if columns is _CHATS:
        rows = rows.with_transform(_as_chats)
    return split(rows, config.holdout, config.training.seed, processes)


class _Told:
    """Who is told of the rows that are read; pickled it is nobody: kept rows are named by their pickled arguments."""

    every = 1000

    def __init__(self, progress: Progress | None = None) -> None:
        self._progress = progress

    def __reduce__(self) -> tuple[Any, ...]:
        return _Told, ()

    def __call__(self, number: int) -> None:
        if self._progress is not None and number % self.every == 0:
            self._progress(number)


def _kept_rows(given: tuple[Any, ...], told: _Told) -> Iterator[dict[str, Any]]:
    names, _, field, characters = given
    for number, row in enumerate(read_sources(names, field, characters), start=1):
        told(number)
        if "messages" in row:
            tools = row["tools"]
            row = {  # noqa: PLW2901 - the same row as columns have it
                "messages": json.dumps(row["messages"]),
                "tools": tools if isinstance(tools, str) else "" if tools is None else json.dumps(tools),
            }
        yield row


def _as_chats(batch: Mapping[str, list[str]]) -> dict[str, list[Any]]:
    """Rows of chats as the collator reads them."""
    decode: dict[str, Callable[[str], Any]] = {"messages": json.loads, "tools": lambda text: text or None}
    return {name: [decode[name](value) for value in values] for name, values in batch.items()}


def split(rows: Any, holdout: int, seed: int, processes: int = 1) -> tuple[Any, Any]:
    """Rows to train on, in their order, and rows to measure on, drawn from all; a tenth of them at most."""
    aside = min(holdout, len(rows) // 10)
    aside -= aside % processes
    order = np.random.default_rng(seed).permutation(len(rows))
    return rows.select(np.sort(order[aside:])), rows.select(np.sort(order[:aside]))


# What is cut off, and what is labelled


def cut_shares(collate: SpanCollator, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Which share of the tokens of some rows is cut off, by side: of 3 rows of 4, 4 and 8 tokens, cut to 6, 2 of 16.

    Args:
        collate: the run's collator.
        rows: some rows.
    """
    limits = {"student": collate.max_student_tokens, "teacher": collate.max_teacher_tokens}
    counts: dict[str, list[int]] = {"student": [], "teacher": []}
    if rows and "messages" in rows[0]:
        fields = collate.chat_fields([row["messages"] for row in rows], tools=[row.get("tools") for row in rows])
        for student, teacher in fields:
            counts["student"].append(len(student.ids))
            counts["teacher"].append(len(teacher.ids))
    else:
        for side, vocab in (("student", collate.tables.student), ("teacher", collate.tables.teacher)):
            encoded = encode_texts([row["text"] for row in rows], vocab, bos=collate.bos, eos=collate.eos)
            counts[side] = encoded.counts.tolist()
    shares = {}
    for side, sizes in counts.items():
        limit = limits[side]
        lost = 0 if limit is None else sum(max(size - limit, 0) for size in sizes)
        shares[side] = lost / max(sum(sizes), 1)
    return shares


@dataclass(frozen=True, kw_only=True)
class LabelledRow:
    """What the student is trained on in a row.

    Attributes:
        tokens: of the row.
        labels: of these, how many are labels.
        cut: tokens that are left out since the row is too long.
        parts: tokens that follow each other and belong to one field of one message, and are labels or not.
    """

    tokens: int
    labels: int
    cut: int
    parts: tuple[LabelledPart, ...]

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `distill --check --show N`."""
        return {**vars(self), "parts": [part.to_dict() for part in self.parts]}


@dataclass(frozen=True, kw_only=True)
class LabelledPart:
    """Tokens of a row that follow each other.

    Attributes:
        message: the position of the message that wrote them, None for what a template wrote, and in texts.
        role: that message's.
        field: `thought`, `content`, `calls`, `end` or `template`; of a text `text`, or `added` for what stands around.
        labelled: whether the student is trained to write them.
        surface: their bytes.
    """

    message: int | None
    role: str | None
    field: str
    labelled: bool
    surface: bytes

    def to_dict(self) -> dict[str, Any]:
        """The part as JSON has it."""
        return {**vars(self), "surface": self.surface.decode("utf-8", "replace")}


def labelled_row(collate: SpanCollator, row: Mapping[str, Any]) -> LabelledRow:
    """What the student is trained on in a row, read from the labels of a batch of this row alone.

    Args:
        collate: the run's collator.
        row: a text or a chat.
    """
    batch = collate([row])
    ids, mask = batch["student_input_ids"][0].tolist(), batch["student_attention_mask"][0].tolist()
    ids = [token for token, counts in zip(ids, mask, strict=True) if counts]
    labels = [label for label, counts in zip(batch["labels"][0].tolist(), mask, strict=True) if counts]
    vocab = collate.tables.student
    messages: Sequence[Mapping[str, Any]] = row.get("messages") or ()
    if "messages" in row:
        ((student, _),) = collate.chat_fields([messages], tools=[row.get("tools")])
        owners = list(zip(student.message.tolist(), student.fields, strict=True))
    else:
        around = {*vocab.roles.get("bos", ()), *vocab.roles.get("eos", ())}
        whole = encode_texts([row["text"]], vocab, bos=collate.bos, eos=collate.eos)
        owners = [(-1, "added" if token in around else "text") for token in whole.ids.tolist()]
        if not row.get("ends", True):
            labels[-1] = IGNORED if ids[-1] in around else labels[-1]
    parts = []
    tokens = zip(ids, owners, labels, strict=False)
    for (message, field, labelled), run in groupby(tokens, lambda each: (*each[1], each[2] != IGNORED)):
        parts.append(
            LabelledPart(
                message=None if message < 0 else message,
                role=None if message < 0 else str(messages[message].get("role")),
                field=field,
                labelled=labelled,
                surface=b"".join(vocab.surfaces[token] for token, _, _ in run),
            )
        )
    return LabelledRow(
        tokens=len(ids),
        labels=sum(label != IGNORED for label in labels),
        cut=len(owners) - len(ids),
        parts=tuple(parts),
    )


def check_templates(config: DistillConfig, student: Vocab, teachers: Sequence[Vocab]) -> None:
    """Refuses chats for a tokenizer that has no chat template and is given none.

    Raises:
        OptionError: a template is missing; every one is named.
    """
    parts: list[StudentConfig | TeacherConfig] = [config.student, *config.teachers]
    places = ["student", *(f"teachers[{number}]" for number in range(len(config.teachers)))]
    missing = []
    for where, part, vocab in zip(places, parts, (student, *teachers), strict=True):
        if part.chat_template is None and vocab.chat_template is None:
            advice = f"name a file with one as {where}.chat_template"
            missing.append((where, f"{where} ({vocab.name}) has no chat template, and the rows are chats: {advice}"))
    refuse(missing)


def labelled_rows(config: DistillConfig, count: int) -> list[LabelledRow]:
    """What the student is trained on in the first rows of a configuration's texts; no model is loaded.

    Args:
        config: the run's.
        count: of rows.

    Raises:
        OptionError: a tokenizer has no chat template.
        CorpusError: the texts cannot be read.
        SourceError: a tokenizer cannot be found.
    """
    rows = list(islice(read_sources(sources_of(config.texts), config.text_field, config.characters), count))
    student, teacher = (read_vocab(tokenizer_source(part)) for part in (config.student, config.teachers[0]))
    if rows and "messages" in rows[0]:
        check_templates(replace(config, teachers=config.teachers[:1]), student, [teacher])
    collate = collator_of(config, student, teacher, config.teachers[0])
    return [labelled_row(collate, row) for row in rows]


def collator_of(config: DistillConfig, student: Vocab, teacher: Vocab, part: TeacherConfig) -> SpanCollator:
    """What makes batches of a configuration's rows, of one document a row.

    Args:
        config: the run's.
        student: the student's vocabulary.
        teacher: a teacher's.
        part: what the configuration says of that teacher.
    """
    return SpanCollator(
        student=student,
        teacher=teacher,
        student_template=template_of(config.student),
        teacher_template=template_of(part),
        bos=config.training.bos,
        eos=config.training.eos,
        max_student_tokens=config.training.max_student_tokens,
        max_teacher_tokens=config.training.max_teacher_tokens,
        **{name: value for name, value in config.collate.items() if name != "pack"},
    )
