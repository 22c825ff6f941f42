"""`push_mapping`: a mapping as a repository of the Hub, one file with a card that says what it covers."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import OptionError
from ..mapping.mapping import Mapping
from ..rules.links import WAYS
from ..sources.hub import upload
from ..store.load import MAPPING_FILE, is_repository
from ..visible import printable


@dataclass(frozen=True, slots=True)
class Pushed:
    """A mapping that was written to the Hub.

    Attributes:
        repository: `user/repo`.
        commit: the hash of the commit, with which `user/repo@commit` is this very mapping for ever.
        version: the mapping's version.
        card: the README.md of the repository.
    """

    repository: str
    commit: str
    version: str
    card: str

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `push`."""
        return {
            "schema": 1,
            "repository": self.repository,
            "commit": self.commit,
            "version": self.version,
            "card": self.card,
        }


def push_mapping(mapping: Mapping, repository: str, *, private: bool = False, token: str | None = None) -> Pushed:
    """Writes a mapping and its card into a repository of the Hub, in one commit.

    Args:
        mapping: the mapping.
        repository: `user/repo`; it is made if it is missing.
        private: whether a repository that is made is private.
        token: a token of the Hub that may write; by default that of `hf auth login` or `$HF_TOKEN`.

    Returns:
        The commit and the card.

    Raises:
        OptionError: `repository` is not of the form `user/repo`.
        SourceError: there is no token, it is refused, or the Hub cannot be reached.
    """
    card = mapping_card(mapping, repository)
    with tempfile.TemporaryDirectory() as place:
        content = mapping.save(Path(place) / MAPPING_FILE).read_bytes()
    commit = upload(
        repository,
        {MAPPING_FILE: content, "README.md": card.encode()},
        private=private,
        message=f"Mapping {mapping.version}",
        token=token,
    )
    return Pushed(repository, commit, mapping.version, card)


def mapping_card(mapping: Mapping, repository: str) -> str:
    """The README.md of a mapping's repository: how to load it, what it covers, its versions, and what to check.

    Raises:
        OptionError: `repository` is not of the form `user/repo`.
    """
    if not is_repository(repository):
        raise OptionError(f"{repository!r} is not a Hub id: expected user/repo, without -- or .. in it")
    student, teacher, coverage = mapping.student, mapping.teacher, mapping.coverage()
    classes = [
        f"| {name} | {row.total:,} | {' | '.join(f'{getattr(row, way):,}' for way in WAYS)} |"
        for name, row in coverage.present().items()
    ]
    return "\n".join(
        [
            "---",
            "library_name: xtoken-align",
            "tags: [tokenizer, vocabulary, knowledge-distillation]",
            "---",
            "",
            f"# Student {_code(student.name)} learns from teacher {_code(teacher.name)}",
            "",
            "A vocabulary mapping: which teacher tokens stand for each student token, for distillation between two",
            "tokenizers.",
            "",
            "```python",
            "import xtoken_align",
            "",
            f'mapping = xtoken_align.load("{repository}")',
            "```",
            "",
            f"Train with **{coverage.recommendation.loss}**: {coverage.recommendation.reason}.",
            "",
            "## Licence",
            "",
            "The file holds the tokens of both tokenizers, and how each writes those of the other. The licences of",
            "both tokenizers apply to it. It holds no weights of a model.",
            "",
            "## Coverage",
            "",
            f"| class of student tokens | ids | {' | '.join(WAYS)} |",
            "|---|--:|" + "--:|" * len(WAYS),
            *classes,
            "",
            "## Versions",
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in _versions(mapping).items()),
            *_origin(mapping),
            "",
        ]
    )


def _versions(mapping: Mapping) -> dict[str, str]:
    """What made the mapping, and of which tokenizers."""
    student, teacher = mapping.student, mapping.teacher
    return {
        "version": f"`{mapping.version}`",
        "made": f"{mapping.provenance}, with xtoken-align {_code(str(mapping.metadata()['package_version']))}",
        "W": f"{student.sizes.logits:,} x {teacher.sizes.logits:,}, {len(mapping.matrix.data):,} links",
        **{
            side: f"{_code(facts.name)} from {_code(facts.source)}"
            + (f" at {_code(facts.revision)}" if facts.revision else "")
            + f", fingerprint `{facts.fingerprint[:12]}`"
            for side, facts in (("student", student), ("teacher", teacher))
        },
    }


def _origin(mapping: Mapping) -> list[str]:
    """What was odd about the file that an imported mapping comes from."""
    noted = mapping.notes.get("imported")
    lines = noted if mapping.provenance == "imported" and isinstance(noted, list) else []
    return ["", "Imported:", "", *(f"- {_code(str(line))}" for line in lines)] if lines else []


def _code(text: str) -> str:
    """A name that a file may have given, as code that ends no cell and no line."""
    shown = printable(text, one_line=True)[:200].replace("`", "'").replace("|", "\\|")
    return f"`{shown}`"
