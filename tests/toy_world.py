"""A toy world: a random model of short texts, and both sides' next tokens computed from it exactly.

The model writes one character at a time, P(character | text so far), and ends a text with some probability. Both sides
write a text as `<s>`, its tokens by longest match, `</s>`. What either side should predict is then a sum over texts:

- *perfect by text*: the tokens that the rest of the text begins with, given the characters so far, P(t | text so far) =
  sum of P(rest | text so far) over the rests whose first token is t. Both sides know the same: this is what a loss that
  compares positions after equal bytes can ask for.
- *perfect by tokens*: given the tokens so far, what a model of token sequences learns. It knows more: after the token
  `1` of a student that has `12`, the next character is no `2`.

The two differ after a token with which a longer one begins, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Literal

import torch
from small_vocabs import make_vocab
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE

from xtoken_align import Mapping, Spans, Vocab, align_ids, build, read_vocab
from xtoken_align.vocab.kinds import Kind

SideName = Literal["student", "teacher"]

END = ""


@dataclass(frozen=True, eq=False)
class ToyWorld:
    """The world.

    Attributes:
        student: the student's vocabulary: its texts, `<s>`, `</s>`, and an id of padding.
        teacher: the teacher's, without padding.
        mapping: built from them.
        next_character: P(character | text so far), `END` for the end.
    """

    student: Vocab
    teacher: Vocab
    mapping: Mapping
    next_character: dict[str, dict[str, float]]

    def vocab(self, side: SideName) -> Vocab:
        return self.student if side == "student" else self.teacher

    def rests(self, text: str) -> dict[str, float]:
        """The probability of every way in which a text goes on to its end."""
        found: dict[str, float] = {}
        for character, probability in self.next_character[text].items():
            if character == END:
                found[""] = probability
                continue
            for rest, later in self.rests(text + character).items():
                found[character + rest] = probability * later
        return found

    @cached_property
    def texts(self) -> dict[str, float]:
        """Every text with its probability."""
        return self.rests("")

    def tokens(self, side: SideName, text: str) -> list[int]:
        """A text's ids up to its end, without `<s>`, with `</s>`."""
        vocab = self.vocab(side)
        return [*vocab.encode_batch([text])[0], vocab.roles["eos"][0]]

    def text_of(self, side: SideName, tokens: Sequence[int]) -> str:
        return b"".join(self.vocab(side).surfaces[token] for token in tokens).decode()

    def by_text(self, side: SideName) -> Callable[[tuple[int, ...]], torch.Tensor]:
        """Log-probabilities of the next token for a side that is perfect by text."""

        def predict(tokens: tuple[int, ...]) -> torch.Tensor:
            probability = torch.zeros(len(self.vocab(side)), dtype=torch.float64)
            for rest, share in self.rests(self.text_of(side, tokens)).items():
                probability[self.tokens(side, rest)[0]] += share
            return probability.log()

        return predict

    def by_tokens(self, side: SideName) -> Callable[[tuple[int, ...]], torch.Tensor]:
        """Log-probabilities of the next token for a side that is perfect by tokens."""

        def predict(tokens: tuple[int, ...]) -> torch.Tensor:
            probability = torch.zeros(len(self.vocab(side)), dtype=torch.float64)
            for text, share in self.texts.items():
                written = self.tokens(side, text)
                if tuple(written[: len(tokens)]) == tokens:
                    probability[written[len(tokens)]] += share
            return (probability / probability.sum()).log()

        return predict

    def random(self, side: SideName, seed: int = 0) -> Callable[[tuple[int, ...]], torch.Tensor]:
        """Log-probabilities of a side that knows nothing: random ones for every text so far."""
        source = torch.Generator().manual_seed(seed)
        kept: dict[str, torch.Tensor] = {}

        def predict(tokens: tuple[int, ...]) -> torch.Tensor:
            text = self.text_of(side, tokens)
            if text not in kept:
                size = len(self.vocab(side))
                live = torch.tensor(self.vocab(side).kinds < Kind.PADDING)
                logits = torch.randn(size, generator=source, dtype=torch.float64)
                kept[text] = torch.where(live, logits, -torch.inf).log_softmax(0)
            return kept[text]

        return predict

    def logits(self, side: SideName, predict: Callable[[tuple[int, ...]], torch.Tensor]) -> torch.Tensor:
        """float64 (texts, T, V): what a side says at every position of every text; padding ids get 5.

        Args:
            side: which.
            predict: log-probabilities (V,) of the next token after some tokens, `<s>` not among them.
        """
        rows = [self.tokens(side, text) for text in self.texts]
        width = len(self.vocab(side))
        made = torch.zeros(len(rows), 1 + max(map(len, rows)), width, dtype=torch.float64)
        for row, tokens in enumerate(rows):
            for count in range(len(tokens)):
                made[row, count] = predict(tuple(tokens[:count]))
        made[..., torch.tensor(self.vocab(side).kinds >= Kind.PADDING)] = 5.0
        return made

    @cached_property
    def spans(self) -> Spans:
        """The chunks of all texts, a row each."""
        ids = {
            side: [[self.vocab(side).roles["bos"][0], *self.tokens(side, text)] for text in self.texts]
            for side in ("student", "teacher")
        }
        return align_ids(ids["student"], ids["teacher"], student=self.student, teacher=self.teacher)

    @cached_property
    def row_of_chunk(self) -> list[int]:
        """The text, by number, of each chunk in use."""
        made = self.spans.predictions()
        return (made.student[made.student_offsets[:-1]] // self.spans.student.shape[1]).tolist()

    def expectation(self, chunk_values: torch.Tensor, *, first_only: bool = False) -> torch.Tensor:
        """The expected sum of the values of a text's chunks, or of its first one alone."""
        probability = list(self.texts.values())
        total, seen = torch.zeros((), dtype=torch.float64), set()
        for value, row in zip(chunk_values, self.row_of_chunk, strict=True):
            if not (first_only and row in seen):
                total = total + probability[row] * value
            seen.add(row)
        return total


def make_world(
    student: Sequence[str], teacher: Sequence[str], *, alphabet: str, longest: int = 4, seed: int = 0
) -> ToyWorld:
    """A world from two lists of tokens.

    Args:
        student: the student's tokens; every character of the alphabet is one.
        teacher: the teacher's.
        alphabet: the characters.
        longest: characters of the longest text.
        seed: of the model of texts.
    """
    vocabs = [
        make_vocab(
            [*tokens, (b"<s>", Kind.SPECIAL), (b"</s>", Kind.SPECIAL), *padding],
            name=name,
            roles={"bos": [len(tokens)], "eos": [len(tokens) + 1]},
        )
        for name, tokens, padding in (
            ("student", student, [(b"", Kind.PADDING)]),
            ("teacher", teacher, []),
        )
    ]
    source = torch.Generator().manual_seed(seed)
    next_character: dict[str, dict[str, float]] = {}
    open_ = [""]
    while open_:
        text = open_.pop()
        if len(text) == longest:
            next_character[text] = {END: 1.0}
            continue
        drawn = torch.rand(len(alphabet) + 1, generator=source, dtype=torch.float64) + 0.1
        next_character[text] = dict(zip((*alphabet, END), (drawn / drawn.sum()).tolist(), strict=True))
        open_ += [text + character for character in alphabet]
    return ToyWorld(vocabs[0], vocabs[1], build(student=vocabs[0], teacher=vocabs[1]), next_character)


def packed(alphabet: str, most: int) -> list[str]:
    """All strings of 1 to `most` characters."""
    found, last = [], [""]
    for _ in range(most):
        last = [text + character for text in last for character in alphabet]
        found += last
    return found


WORLDS = {
    "the student packs": lambda seed=0: make_world(packed("12", 3), "12", alphabet="12", seed=seed),
    "the teacher packs": lambda seed=0: make_world("12", packed("12", 3), alphabet="12", seed=seed),
    "each packs its own": lambda seed=0: make_world(
        ["1", "2", "11", "12", "121", "a"], ["1", "2", "a", "aa", "aaa"], alphabet="12a", longest=3, seed=seed
    ),
}
"""Worlds in which a chunk has one token on one side, and every beginning of a token's decomposition is a token."""

CROSSING = {
    "tokens cross": lambda seed=0: make_world(
        ["a", "b", "c", "bc"], ["a", "b", "c", "ab"], alphabet="abc", longest=3, seed=seed
    ),
    "tokens cross the other way": lambda seed=0: make_world(
        ["a", "b", "c", "ab"], ["a", "b", "c", "bc"], alphabet="abc", longest=3, seed=seed
    ),
}
"""Worlds with chunks of several tokens on both sides."""

UNCLOSED = {
    "a student's token has no beginning": lambda seed=0: make_world(["1", "2", "122"], "12", alphabet="12", seed=seed),
    "a teacher's token has no beginning": lambda seed=0: make_world("12", ["1", "2", "122"], alphabet="12", seed=seed),
    "the teacher's token is no student's": lambda seed=0: make_world(
        ["1", "2", "122"], ["1", "2", "12"], alphabet="12", seed=seed
    ),
}
"""Worlds in which a token's decomposition begins with what is no token."""


@cache
def bpe(merges: tuple[str, ...]) -> Vocab:
    """A real BPE over a, b, c, with `<s>` and `</s>`."""
    tokens = ["a", "b", "c", *(merge.replace(" ", "") for merge in merges)]
    vocab = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=[tuple(merge.split()) for merge in merges]))
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    return read_vocab(tokenizer)
