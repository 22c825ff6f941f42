"""`compat`: how two tokenizers relate, and so whether what was made for one serves the other."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..cards import card
from ..mapping.find import json_surface
from ..visible import printable
from .tokens import Match, Vocabulary

RELATIONS = ("identical", "permuted", "extended", "repurposed", "partial", "disjoint")


@dataclass(frozen=True, slots=True, repr=False)
class Compat:
    """How vocabulary B relates to vocabulary A.

    Attributes:
        relation: one of `RELATIONS`:
            `identical`, every id stands for the same token;
            `permuted`, the same tokens under other ids;
            `extended`, one has every token of the other under the same id, and more;
            `repurposed`, most shared ids stand for the same token, and some for another;
            `partial`, some tokens in common;
            `disjoint`, none.
        same_text: whether both mean and produce the same text ids (equal fingerprints): what a mapping needs.
        same: ids that stand for the same token on both sides.
        moved: tokens that have another id.
        repurposed: ids that stand for another token.
        renamed: ids of special tokens with another name.
        added: tokens that only B has.
        removed: tokens that only A has.
        logits: the two logit widths.
        because: one sentence for people.
    """

    relation: str
    same_text: bool
    same: int
    moved: int
    repurposed: int
    renamed: int
    added: int
    removed: int
    logits: tuple[int, int]
    because: str

    def __repr__(self) -> str:
        return printable(f"Compat({self.relation}: {self.because})", one_line=True)

    def _repr_html_(self) -> str:
        facts = {name.replace("_", " "): value for name, value in asdict(self).items() if name != "relation"}
        return card(f"The vocabularies are {self.relation}", {**facts, "same text": "yes" if self.same_text else "no"})

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `compat`."""
        return {"schema": 1, **asdict(self), "logits": list(self.logits)}


def compat(a: Vocabulary, b: Vocabulary) -> Compat:
    """Compares two tokenizers, token by token.

    Args:
        a: a `Vocab` or a mapping's side.
        b: the same.

    Returns:
        The relation with the counts that decide it. Reserved fillers, padding and holes are no tokens, so a tokenizer
        that gives a reserved id a use extends the one that does not.
    """
    match = Match(a, b)
    counts = {
        "same": int(match.in_place.sum()),
        "moved": len(match.moved),
        "repurposed": len(match.repurposed),
        "renamed": len(match.renamed),
        "added": len(match.added),
        "removed": len(match.removed),
    }
    same_text = a.fingerprint == b.fingerprint
    relation = _relation(**counts)
    return Compat(
        relation=relation,
        same_text=same_text,
        **counts,
        logits=(a.sizes.logits, b.sizes.logits),
        because=_sentence(match, relation, same_text, counts),
    )


def _relation(*, same: int, moved: int, repurposed: int, renamed: int, added: int, removed: int) -> str:
    if not same and not moved:
        return "disjoint"
    if not moved and not repurposed and not renamed and not (added and removed):
        return "extended" if added or removed else "identical"
    if not added and not removed:
        return "permuted"
    in_conflict = repurposed + renamed
    return "repurposed" if in_conflict and same > in_conflict else "partial"


def _sentence(match: Match, relation: str, same_text: bool, counts: dict[str, int]) -> str:
    parts = [f"{counts['same']:,} ids stand for the same token"]
    parts += [f"{counts[key]:,} {words}" for key, words in _WORDS.items() if counts[key]]
    if len(match.repurposed):
        first = int(match.repurposed[0])
        was, now = (json_surface(side.surfaces[first]) for side in (match.old, match.new))
        parts.append(f"id {first} is {was!r} in {match.old.name} and {now!r} in {match.new.name}")
    if relation == "identical" and not same_text:
        parts.append("yet text is encoded otherwise: another split pattern, normaliser or merges")
    elif relation != "identical" and same_text:
        parts.append("text means the same to both")
    return "; ".join(parts)


_WORDS = {
    "moved": "tokens have another id",
    "repurposed": "ids stand for another token",
    "renamed": "special ids have another name",
    "added": "tokens are new",
    "removed": "tokens are gone",
}
