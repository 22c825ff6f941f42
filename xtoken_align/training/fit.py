"""What has to fit before a run starts: tokenizers to models, and mappings to both tokenizers."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from ..errors import MismatchError, OptionError
from ..mapping.mapping import Mapping
from ..read import read_vocab
from ..store.load import check_fits, get_or_build, load
from ..vocab.vocab import Vocab


def logit_width(model: Any) -> int:
    """How many logits a causal language model has.

    Raises:
        OptionError: it has no head.
    """
    head = model.get_output_embeddings()
    if head is None or getattr(head, "weight", None) is None:
        raise OptionError(
            f"expected a causal language model with a head, got {type(model).__name__}: load it with "
            "AutoModelForCausalLM"
        )
    return int(head.weight.shape[0])


def vocab_of(tokenizer: Any, model: Any, width: int, role: str) -> Vocab:
    """The vocabulary of a side, as wide as its logits.

    Args:
        tokenizer: a `Vocab`, what `read_vocab` takes, or None for the model's own folder or Hub id.
        model: the model, if there is one.
        width: its logit width.
        role: `student` or `teacher`, for messages.

    Raises:
        OptionError: there is no tokenizer, or a `Vocab` has another width.
        VocabularyError: the tokenizer has more ids than the model has logits.
    """
    source = tokenizer or getattr(model, "name_or_path", None)
    if not source:
        raise OptionError(f"the {role}'s tokenizer is missing: give its folder, alias or Hub id as `tokenizer`")
    if not isinstance(source, Vocab):
        # A width that the files state and the model does not have is only seen with both in hand.
        vocab = read_vocab(source)
        return vocab if len(vocab) == width else read_vocab(source, logits=width)
    if len(source) != width:
        raise OptionError(
            f"the {role} {source.name} has {len(source)} logits by its vocabulary, but the model has {width}: read the "
            f"vocabulary with logits={width}, or give the tokenizer of this model"
        )
    return source


def fitting_mapping(
    given: Mapping | str | os.PathLike[str] | None,
    *,
    student: Vocab,
    teacher: Vocab,
    store: str | os.PathLike[str] | None = None,
    first: Callable[[Callable[[], Mapping]], Mapping] = lambda make: make(),
) -> Mapping:
    """The mapping of two tokenizers: the one that is given, if it is theirs, else from the store, else built and kept.

    Args:
        given: a mapping, its file, its name in the store, or None.
        student: the student's vocabulary.
        teacher: the teacher's.
        store: the store's folder.
        first: calls a function in one process of each machine before the others.

    Raises:
        MismatchError: the mapping is of other tokenizers; says what differs.
    """
    if given is None:
        return first(lambda: get_or_build(student=student, teacher=teacher, store=store))
    mapping = given if isinstance(given, Mapping) else load(given, store=store)
    for side, vocab, role in ((mapping.student, student, "student"), (mapping.teacher, teacher, "teacher")):
        check_fits(side, vocab, role)
        if side.sizes.logits != len(vocab):
            raise MismatchError(
                f"the mapping's {role} has {side.sizes.logits} logits, but the model has {len(vocab)}: build a mapping "
                f"with --{role}-logits {len(vocab)}"
            )
    return mapping
