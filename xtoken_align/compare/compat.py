"""`compat`: how two tokenizers relate, and so whether what was made for one serves the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..cards import card
from ..errors import OptionError
from ..mapping.find import json_surface
from ..visible import printable
from ..vocab.fingerprint import ENCODING, PART_WORDS
from ..vocab.kinds import Kind
from ..vocab.vocab import Vocab
from .parts import CorpusDifference, PartsMatch, compare_corpus, earlier_note, share
from .tokens import Match, Vocabulary

RELATIONS = ("identical", "same ids", "permuted", "extended", "repurposed", "partial", "disjoint")

_WORDS = {
    "moved": "tokens have another id",
    "repurposed": "ids stand for another token",
    "renamed": "special ids have another name",
    "added": "tokens are new",
    "removed": "tokens are gone",
}


@dataclass(frozen=True, slots=True, repr=False)
class Compat:
    """How vocabulary B relates to vocabulary A.

    Attributes:
        relation: one of `RELATIONS`:
            `identical`, every id stands for the same token, text becomes the same ids, and no part differs;
            `same ids`, every id stands for the same token, and something else differs: the encoding, a role, a
            template;
            `permuted`, the same tokens under other ids;
            `extended`, one has every token of the other under the same id, and more;
            `repurposed`, most shared ids stand for the same token, and some for another;
            `partial`, some tokens in common;
            `disjoint`, none.
        verdict: the relation with what differs beside the tokens, in one line.
        same_text: whether both mean and produce the same text ids.
        serves: whether a mapping made for one serves the other: same text, same roles, no special token elsewhere.
        same: ids that stand for the same token on both sides.
        moved: tokens that have another id.
        repurposed: ids that stand for another token.
        renamed: ids of special tokens with another name.
        added: tokens that only B has.
        removed: tokens that only A has.
        logits: the two logit widths.
        because: one sentence for people.
        tokens: its first part, on the tokens alone.
        parts: what is compared in words -> `equal`, or what differs.
        roles: roles that stand for other ids.
        lines: how many lines of the canary become other ids, and of how many; of all lines where the text tokens are
            the same, else of those that all vocabularies have.
        example: the shortest of these lines.
        corpus: how the lines of a corpus are encoded, where one was given.
    """

    relation: str
    verdict: str
    same_text: bool
    serves: bool
    same: int
    moved: int
    repurposed: int
    renamed: int
    added: int
    removed: int
    logits: tuple[int, int]
    because: str
    tokens: str
    parts: Mapping[str, str] = field(repr=False)
    roles: tuple[str, ...]
    lines: tuple[int, int]
    example: str | None
    corpus: CorpusDifference | None = None

    def __repr__(self) -> str:
        return printable(f"Compat({self.relation}: {self.because})", one_line=True)

    def _repr_html_(self) -> str:
        counts = {name: getattr(self, name) for name in ("same", *_WORDS)}
        facts: dict[str, object] = {"because": self.because, **counts, **self.parts}
        if self.corpus is not None:
            facts["corpus"] = str(self.corpus)
        facts["a mapping of one"] = self.service
        facts["logits"] = f"{self.logits[0]:,} and {self.logits[1]:,}"
        return card(f"The vocabularies are {self.relation}", facts)

    @property
    def service(self) -> str:
        """Whether a mapping that was made for one is right for the other, in a sentence's end."""
        if self.serves:
            news = self.added + self.removed
            return "serves the other too" + (f", but for {news:,} tokens that it has no row for" if news else "")
        if self.same_text:
            return "is right for the other's text alone: special tokens or roles differ, or are not fully known"
        return "is wrong for the other"

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `compat`."""
        facts = {name: getattr(self, name) for name in self.__slots__ if name != "corpus"}
        corpus = {} if self.corpus is None else {"corpus": self.corpus.to_dict()}
        lists = {name: list(facts[name]) for name in ("logits", "roles", "lines")}
        return {"schema": 1, **facts, **lists, "parts": dict(self.parts), **corpus}


def compat(a: Vocabulary, b: Vocabulary, *, corpus: Iterable[str] | None = None) -> Compat:
    """Compares two tokenizers: their tokens, how they encode, and what stands beside: roles, templates, flags.

    Args:
        a: a `Vocab` or a mapping's side.
        b: the same.
        corpus: texts that both encode; both must be a `Vocab`.

    Returns:
        The relation with the counts that decide it. Reserved fillers, padding and holes are no tokens, so a tokenizer
        that gives a reserved id a use extends the one that does not.

    Raises:
        OptionError: a side of a mapping cannot encode a corpus.
    """
    if corpus is not None and not (isinstance(a, Vocab) and isinstance(b, Vocab)):
        raise OptionError("a corpus is encoded by both tokenizers, but a mapping's side is none: read them")
    match, parts = Match(a, b), PartsMatch(a, b)
    counts = {
        "same": int(match.in_place.sum()),
        "moved": len(match.moved),
        "repurposed": len(match.repurposed),
        "renamed": len(match.renamed),
        "added": len(match.added),
        "removed": len(match.removed),
    }
    relation = _relation(**counts)
    differs = not parts.same_text or parts.beside or parts.roles or parts.one_template or not parts.known
    if relation == "identical" and differs:
        relation = "same ids"
    tokens = _of_tokens(match, parts, relation, counts)
    in_place = relation in ("identical", "same ids", "extended")
    return Compat(
        relation=relation,
        verdict=_verdict(parts, relation),
        same_text=parts.same_text,
        serves=parts.same_text and parts.known and not parts.roles and in_place,
        **counts,
        logits=(a.sizes.logits, b.sizes.logits),
        because="; ".join([tokens, *_of_parts(match, parts, relation)]),
        tokens=tokens,
        parts=_parts(match, parts),
        roles=parts.roles,
        lines=parts.lines if in_place or parts.same_tokens else (0, 0),
        example=parts.example if in_place or parts.same_tokens else None,
        corpus=None if corpus is None else compare_corpus(a, b, corpus),  # type: ignore[arg-type] # checked above
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


def _verdict(parts: PartsMatch, relation: str) -> str:
    """The relation, and what else differs; of tokenizers with other text tokens all else differs too."""
    if not parts.same_tokens and relation != "extended":
        return relation
    encoding = parts.encoding_words()
    words = [f"other encoding: {encoding}"] if encoding else []
    if not parts.same_tokens and not encoding:
        words = ["other encoding of text that holds a token of one alone"]
    words += [] if parts.known else ["as far as is known of both"]
    return ", ".join([relation, *words, *parts.beside_words()])


def _of_tokens(match: Match, parts: PartsMatch, relation: str, counts: Mapping[str, int]) -> str:
    words = [f"{counts['same']:,} ids stand for the same token"]
    words += [f"{counts[key]:,} {text}" for key, text in _WORDS.items() if counts[key]]
    if len(match.repurposed):
        first = int(match.repurposed[0])
        was, now = (json_surface(side.surfaces[first]) for side in (match.old, match.new))
        # The same string may be text in one file and a special token in the other.
        kinds = [
            f", {Kind(int(side.kinds[first])).name.lower()}," if was == now else "" for side in (match.old, match.new)
        ]
        words.append(f"id {first} is {was!r}{kinds[0]} in {match.old.name} and {now!r}{kinds[1]} in {match.new.name}")
    if parts.same_text and relation != "identical":
        words.append("text means the same to both")
    return "; ".join(words)


def _of_parts(match: Match, parts: PartsMatch, relation: str) -> list[str]:
    """What differs beside the tokens, in the words of `because`."""
    words: list[str] = []
    if parts.same_tokens or relation == "extended":
        encoding = parts.encoding_words()
        if encoding:
            words.append(f"{'yet ' if relation == 'same ids' else ''}text is encoded otherwise: {encoding}")
        elif not parts.same_tokens:
            words.append("text is encoded otherwise where it holds what is a token of one alone")
        words += parts.beside_words()
        words += [earlier_note(side.name) for side in (match.old, match.new) if side.parts is None]
    return words


def _parts(match: Match, parts: PartsMatch) -> dict[str, str]:
    """What is compared -> `equal`, or what differs, the most important first."""
    found = {"text tokens": "equal" if parts.same_tokens else "differ"}
    if parts.known and parts.same_tokens:
        count, total = parts.lines
        alike = f"all {total:,} lines alike"
        found["ids of text"] = f"{count:,} of {total:,} lines differ ({share(count, total)})" if count else alike
    elif not parts.known:
        found["ids of text"] = {True: "equal in a few lines", False: "differ", None: "not known"}[parts.same_ids]
    for name, state in parts.states.items():
        if state is not None:
            found[PART_WORDS[name]] = "equal" if state else "differ"
    if parts.one_template is not None:
        found[PART_WORDS["chat_template"]] = f"only {getattr(match, parts.one_template).name} has one"
    unstated = [PART_WORDS[name] for name in ENCODING if parts.states.get(name, False) is None]
    if unstated and parts.same_tokens:
        found["judged by the lines alone"] = ", ".join(unstated)
    specials = [len(ids) for ids in (match.added, match.removed, match.renamed, match.moved)]
    if parts.same_tokens:
        found["special tokens"] = "differ" if any(specials) else "equal"
    found["roles"] = f"differ: {', '.join(parts.roles)}" if parts.roles else "equal"
    return found
