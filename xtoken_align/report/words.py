"""What the report says in words: losses, ways and rules explained to who reads of them for the first time."""

from __future__ import annotations

_PROJECTED = (
    "Some tokens that matter have no counterpart of their own: project the student's probabilities through W before "
    "they are compared, so that a split token is taught through its pieces."
)
_DIRECT = "The tokens that matter have counterparts of their own: compare common tokens directly and the rest by rank."
_SAME = "Both sides share one vocabulary: W is the identity and nothing has to be projected."

LOSSES = {
    "p-kl": ("Train with P-KL", _PROJECTED),
    "h-kl": ("Train with H-KL", _DIRECT),
    "identity": ("Train with an ordinary KL", _SAME),
}
"""Loss -> (headline, what it does and why it fits)."""

WAYS = {
    "exact": "one teacher token says the same",
    "near": "one teacher token says nearly the same",
    "split": "the teacher writes it in several pieces",
    "empty": "nothing is mapped",
    "absent": "no token of the student",
}
"""How a row is mapped -> what that means."""

RULES = {
    "identity": "equal vocabularies, every id to itself",
    "exact": "the same bytes",
    "special": "a special token of the same role or name",
    "space": "the same but for one leading space",
    "case": "the same but for upper and lower case",
    "nfkc": "the same after compatibility folding",
    "override": "given by hand",
    "digits": "a numeral, split as the teacher splits it",
    "decompose": "text, as the teacher tokenises it",
    "bytes": "bytes that are no whole characters",
    "reverse": "a piece of some teacher token",
    "none": "no teacher token",
}
"""Rule -> what its links mean."""

REASONS = {
    "reserved": "a filler that no text contains",
    "padding": "a logit without a token",
    "hole": "an id without a token",
    "special without counterpart": "no special token of the teacher has its role or name",
    "teacher cannot spell it": "the teacher's tokenizer gives nothing, or an unknown token",
}
"""Why a row is empty -> what that means."""


def loss_words(loss: str) -> tuple[str, str]:
    """Headline and explanation; a loss of a newer version is named without one."""
    return LOSSES.get(loss, (f"Train with {loss}", ""))


def rule_name(rule: str) -> str:
    """What a rule is called in a legend."""
    return "empty" if rule == "none" else rule
