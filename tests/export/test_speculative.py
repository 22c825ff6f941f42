"""Assisted generation of transformers, with a draft model of another tokenizer and the map from an exported file."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import xtoken_align

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402
from transformers.generation.candidate_generator import (  # noqa: E402
    AssistantToTargetTranslator,
    AssistantVocabTranslatorCache,
    UniversalSpeculativeDecodingGenerator,
)

CYCLE = " red green blue violet amber 12 black white silver gold"
"""What both models say for ever. The draft model has ` 12` as one token, the target writes a space, 1 and 2."""


def tokenizer(*, split_digits: bool) -> Any:
    trained = Tokenizer(models.BPE())
    steps = [pre_tokenizers.Digits(individual_digits=True)] if split_digits else []
    trained.pre_tokenizer = pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330 + 7 * split_digits,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<end>"] if split_digits else ["<s>", "<end>"],
        show_progress=False,
    )
    trained.train_from_iterator([CYCLE * 9], trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=trained, eos_token="<end>", pad_token="<end>")


def chain(vocabulary: Any) -> Any:
    """A Llama that says the cycle: its layer adds nothing, and its head maps each token's embedding to the next."""
    ids = vocabulary(CYCLE, add_special_tokens=False)["input_ids"]
    width = len(vocabulary) + 3
    config = transformers.LlamaConfig(
        vocab_size=width, hidden_size=width, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1,
        head_dim=4, max_position_embeddings=512, eos_token_id=vocabulary.eos_token_id,
        pad_token_id=vocabulary.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.norm.weight.fill_(1)
        model.model.embed_tokens.weight.copy_(torch.eye(width))
        for token, after in pairwise([*ids, ids[0]]):
            model.lm_head.weight[after, token] = 9.0
    return model


def test_the_target_takes_every_proposal_that_the_map_promises(tmp_path: Path, monkeypatch) -> None:
    draft_tokenizer, target_tokenizer = tokenizer(split_digits=False), tokenizer(split_digits=True)
    draft, target = chain(draft_tokenizer), chain(target_tokenizer)
    mapping = xtoken_align.build(
        student=xtoken_align.read_vocab(draft_tokenizer, logits=draft.config.vocab_size, name="draft"),
        teacher=xtoken_align.read_vocab(target_tokenizer, logits=target.config.vocab_size, name="target"),
    )
    mapping.export(tmp_path / "tli.safetensors", format="tli")
    arrays = safetensors.load_file(tmp_path / "tli.safetensors")
    to_target, to_draft = arrays["draft_to_target_ids"], arrays["target_to_draft_ids"]

    class FromFile(AssistantToTargetTranslator):
        def _get_assistant_to_target_input_ids(self) -> Any:
            return to_target, {token: int(to_draft[token]) for token in (to_draft >= 0).nonzero().flatten().tolist()}

    translator = FromFile(target_tokenizer, draft_tokenizer, target.config.vocab_size, draft)
    monkeypatch.setattr(AssistantVocabTranslatorCache, "get_translator", lambda *_, **__: translator)
    proposals: list[tuple[int, list[int]]] = []
    propose = UniversalSpeculativeDecodingGenerator.get_candidates

    def recorded(self: Any, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
        candidates, logits = propose(self, input_ids, *args, **kwargs)
        proposals.append((input_ids.shape[1], candidates[0, input_ids.shape[1] :].tolist()))
        return candidates, logits

    monkeypatch.setattr(UniversalSpeculativeDecodingGenerator, "get_candidates", recorded)
    prompt = target_tokenizer(" red green", add_special_tokens=False, return_tensors="pt")
    options = {"max_new_tokens": 48, "do_sample": True, "top_k": 0}
    alone = target.generate(**prompt, **options)[0].tolist()
    torch.manual_seed(0)
    together = target.generate(
        **prompt, **options, assistant_model=draft, tokenizer=target_tokenizer, assistant_tokenizer=draft_tokenizer
    )[0].tolist()

    assert together == alone
    assert target_tokenizer.decode(alone).startswith(" red green blue violet amber 12 black white silver gold red")
    # What is proposed is in the map; where the text goes on with a token that both have, it is also taken.
    common = set(to_target[to_target >= 0].tolist())
    proposed = [token for _, tokens in proposals for token in tokens]
    assert proposed
    assert set(proposed) <= common
    words = {target_tokenizer(f" {word}")["input_ids"][0] for word in CYCLE.split() if not word.isdigit()}
    assert words <= common
    firsts = [(alone[at - 1], alone[at], tokens[0]) for at, tokens in proposals if tokens and at < len(alone)]
    after_words = [(now, first) for before, now, first in firsts if {before, now} <= words]
    assert after_words
    assert all(now == first for now, first in after_words)
    accepted = sum(
        next((n for n, (token, said) in enumerate(zip(tokens, alone[at:], strict=False)) if token != said), len(tokens))
        for at, tokens in proposals
    )
    assert accepted >= 24
    assert draft_tokenizer.convert_tokens_to_ids("Ġ12") not in (to_target >= 0).nonzero().flatten().tolist()

    # For two tokenizers that write their tokens alike, the map by bytes is transformers' own map by strings.
    theirs = AssistantToTargetTranslator(target_tokenizer, draft_tokenizer, target.config.vocab_size, draft)
    ours = to_target[: len(draft_tokenizer)]
    assert torch.equal(ours, theirs._assistant_to_target_input_ids)
