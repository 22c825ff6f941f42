"""`build`: two vocabularies in, a mapping out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping as Table
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from .errors import OptionError, XTokenWarning
from .mapping.audit import unpaired_ends
from .mapping.mapping import Mapping, Side
from .matrix import Matrix, assemble_matrix
from .read import as_vocab
from .rules.override import Override, with_overrides
from .rules.pieces import Pair, Pieces
from .rules.rules import rule_options, run_rules
from .vocab.vocab import Vocab


def build(
    *,
    student: Vocab | str | os.PathLike[str] | Any,
    teacher: Vocab | str | os.PathLike[str] | Any,
    rules: Sequence[str] | None = None,
    case: bool = False,
    nfkc: bool = False,
    lead: float = 0.9,
    decay: float = 0.1,
    top_k: int = 4,
    reverse_pass: bool = False,
    overrides: str | os.PathLike[str] | Sequence[Override | dict[str, Any]] = (),
) -> Mapping:
    """Builds the mapping from a student's vocabulary to a teacher's.

    Args:
        student: a vocabulary, or what `read_vocab` takes.
        teacher: the same.
        rules: names of the rules that run, in any order; by default all but `case` and `nfkc`.
        case: also match after case folding.
        nfkc: also match after compatibility folding.
        lead: weight of a decomposition's first piece before the row is normalised.
        decay: each further piece's weight as a share of the one before; 0 keeps the first piece alone.
        top_k: how many pieces of a decomposition get weights.
        reverse_pass: also link teacher tokens that no row reaches to the student tokens that spell them.
        overrides: rows of the user's own, as the path of a YAML or JSON file or as its entries.

    Returns:
        The mapping; its W has shape (student logits, teacher logits).

    Raises:
        SourceError, VocabularyError: a tokenizer cannot be read.
        OptionError: an option is out of its range.
        OverrideError: an override is malformed or names an unknown token.

    >>> mapping = build(student="llama-3", teacher="qwen3")
    >>> [(link.surface, round(link.weight, 4)) for link in mapping.row("201").links]
    [(b'2', 0.9009), (b'0', 0.0901), (b'1', 0.009)]
    """
    options = rule_options(
        rules=rules,
        case=case,
        nfkc=nfkc,
        lead=lead,
        decay=decay,
        top_k=top_k,
        reverse_pass=reverse_pass,
        overrides=overrides,
    )
    # From here on all is decided: rules make links, links make W, and W is counted.
    pair = Pair.of(as_vocab(student), as_vocab(teacher))
    matrix = assemble_matrix(run_rules(pair, options), (len(pair.student), len(pair.teacher)))
    if not len(matrix.data):
        warnings.warn(
            f"no token of {pair.student.name} has a counterpart in {pair.teacher.name}: W is empty, and there is "
            "nothing to distil through it",
            XTokenWarning,
            stacklevel=2,
        )
    # A token that the user maps by hand is written as the user says, in reports and in losses.
    student_pieces = with_overrides(pair, options.overrides) if options.overrides else pair.student_pieces
    mapping = mapping_of(pair, matrix, options=options.to_dict(), student_pieces=student_pieces)
    for sentence in mapping.notes.get("warnings", ()):
        warnings.warn(sentence, XTokenWarning, stacklevel=2)
    return mapping


def mapping_of(
    pair: Pair,
    matrix: Matrix,
    *,
    options: dict[str, Any],
    student_pieces: Pieces,
    provenance: str = "built",
    notes: Table[str, Any] | None = None,
) -> Mapping:
    """Puts W and its two vocabularies together, and notes what a user should be warned of.

    Args:
        pair: the two vocabularies.
        matrix: W.
        options: what decided the links.
        student_pieces: every student token as the teacher writes it.
        provenance: `built` or `imported`.
        notes: what a reader may want to know.
    """
    notes = dict(notes or {})
    if (sentence := unpaired_ends(pair.student, pair.teacher, matrix)) is not None:
        notes["warnings"] = [sentence]
    for side, vocab in (("student", pair.student), ("teacher", pair.teacher)):
        # Notes are not hashed: they help a person who audits the mapping, and no result depends on them.
        notes[f"{side}_duplicates"] = vocab.repeated_surfaces
        if vocab.disagreeing:
            notes[f"{side}_decoder_disagrees"] = list(vocab.disagreeing)
    return Mapping(
        student=Side.of(pair.student),
        teacher=Side.of(pair.teacher),
        matrix=matrix,
        options=options,
        student_pieces=student_pieces,
        teacher_pieces=pair.teacher_pieces,
        provenance=provenance,
        created=_created(),
        notes=notes,
    )


def plain_options(**options: Any) -> dict[str, Any]:
    """The options of `build` as a mapping records them: what is given, and the defaults of the rest.

    Raises:
        OptionError, OverrideError: as `build`.
    """
    return rule_options(**options).to_dict()


def _created() -> str | None:
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if not epoch:
        return None
    try:
        return datetime.fromtimestamp(int(epoch), UTC).isoformat()
    except (ValueError, OverflowError, OSError) as error:
        raise OptionError(f"SOURCE_DATE_EPOCH is {epoch!r}: expected seconds since 1970, or unset it") from error
