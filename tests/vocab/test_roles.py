"""Roles: the configuration first, the alias's table second, well-known names last; special ids alone have any."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from xtoken_align import Vocab
from xtoken_align.readers.parsed import Declared, Parsed
from xtoken_align.readers.spelling import Spelling
from xtoken_align.vocab.kinds import Kind
from xtoken_align.vocab.roles import _NAMES, ROLES, decide_roles

Roles = Mapping[str, tuple[str, ...]]


def roles_of(
    texts: list[str], *, roles: Roles | None = None, preset: Roles | None = None, plain: frozenset[str] = frozenset()
) -> dict[str, tuple[int, ...]]:
    """The roles of tokens, all special but the `plain` ones."""

    def make_encoder(_: object) -> object:
        raise AssertionError

    parsed = Parsed(
        format="test",
        raw=texts,
        declared=np.full(len(texts), Declared.SPECIAL, dtype=np.uint8),
        in_base=np.ones(len(texts), dtype=np.bool_),
        base_size=len(texts),
        spelling=Spelling(),
        make_encoder=make_encoder,
        roles=roles or {},
        preset_roles=preset or {},
    )
    kinds = np.array([Kind.TEXT if text in plain else Kind.SPECIAL for text in texts], dtype=np.uint8)
    return decide_roles(parsed, kinds)


def test_well_known_names_have_roles_without_any_configuration() -> None:
    assert roles_of(["<s>", "<|im_end|>", "<think>"]) == {"bos": (0,), "eot": (1,), "think_start": (2,)}


def test_the_configuration_wins_over_the_alias_and_both_over_names() -> None:
    texts = ["<s>", "<x>", "<y>"]
    assert roles_of(texts, preset={"bos": ("<x>",)})["bos"] == (1,)
    assert roles_of(texts, preset={"bos": ("<x>",)}, roles={"bos": ("<y>",)})["bos"] == (2,)


def test_a_configured_token_that_does_not_exist_leaves_the_role_to_the_next_table() -> None:
    assert roles_of(["<s>"], roles={"bos": ("<missing>",)})["bos"] == (0,)


def test_one_id_may_have_several_roles() -> None:
    found = roles_of(["<|im_end|>"], roles={"eos": ("<|im_end|>",), "pad": ("<|im_end|>",)})
    assert found == {"eot": (0,), "eos": (0,), "pad": (0,)}


def test_one_role_may_have_several_ids_in_ascending_order() -> None:
    assert roles_of(["<b>", "<a>", "<b>"], roles={"eos": ("<a>", "<b>")})["eos"] == (0, 1, 2)


def test_ordinary_text_has_no_role_whatever_it_is_called() -> None:
    assert roles_of(["<s>", "<unk>"], plain=frozenset(("<s>", "<unk>"))) == {}


def test_roles_come_in_order_of_precedence_with_unknown_names_last() -> None:
    found = roles_of(["<a>", "</s>", "<s>"], roles={"my_role": ("<a>",)})
    assert list(found) == ["bos", "eos", "my_role"]


def test_no_string_stands_for_two_roles_and_every_role_has_a_place() -> None:
    strings = [text for texts in _NAMES.values() for text in texts]
    assert len(strings) == len(set(strings))
    assert set(_NAMES) <= set(ROLES)
    assert len(ROLES) == len(set(ROLES))


@pytest.mark.parametrize(
    ("source", "role", "texts"),
    [
        ("llama-3", "bos", {"<|begin_of_text|>"}),
        ("llama-3", "eot", {"<|eot_id|>"}),
        ("llama-3", "header_start", {"<|start_header_id|>"}),
        ("qwen3", "eot", {"<|im_end|>"}),
        ("qwen3", "header_start", {"<|im_start|>"}),
        ("qwen3", "think_start", {"<think>"}),
        ("mistral-v1", "bos", {"<s>"}),
        ("mistral-tekken", "bos", {"<s>"}),
    ],
)
def test_real_tokenizers_have_the_roles_of_their_generation(
    real: Callable[[str], Vocab], source: str, role: str, texts: set[str]
) -> None:
    vocab = real(source)
    assert {vocab.raw[token] for token in vocab.roles[role]} == texts
