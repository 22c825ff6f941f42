"""`transplant`: which row is made from what, what stays as it was, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from small_vocabs import make_vocab, vocabs
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from xtoken_align import Mapping, Transplant, build, read_vocab, transplant
from xtoken_align.errors import MismatchError, OptionError, SourceError, StoreError
from xtoken_align.rules.links import RULE_NUMBER
from xtoken_align.vocab.kinds import Kind

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from xtoken_align.export.transplant import MADE, make_rows, plan_rows  # noqa: E402 - after torch is known to be there

TEXT = ["the cat sat on the mat 12 120 (201) (201) über naïve", "a hat and a cat, the end: 2012; the the 12 12 20 20"]
OWN_WORD = "(quartz)"
"""What models have a token for here, and the tokenizer that they get has none."""
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
OWN = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
"""Specials of the tokenizer that models have here."""
NEW = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<extra>"]
"""Specials of the one that they get: the first two have the roles bos and eos, both ends of a turn one counterpart."""


def write_tokenizer(folder: Path, specials: list[str], *, size: int, digits: bool, **roles: str) -> Path:
    """A byte-level BPE, with a token for each digit or for whole numerals."""
    tokenizer = Tokenizer(models.BPE())
    steps: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    if digits:
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Sequence(steps), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*TEXT * 4, *([OWN_WORD] * 4 if digits else [])], trainer)
    tokenizer.add_tokens([AddedToken("<tag>", special=False, normalized=False, lstrip=True)])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    facts = {"tokenizer_class": "PreTrainedTokenizerFast", **{f"{role}_token": text for role, text in roles.items()}}
    (folder / "tokenizer_config.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own") / "splits"
    return write_tokenizer(folder, OWN, size=295, digits=True, bos="<s>", eos="</s>", pad="<pad>")


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("new") / "packs"
    return write_tokenizer(folder, NEW, size=320, digits=False, bos="<|begin_of_text|>", eos="<|end_of_text|>")


@pytest.fixture(scope="module")
def width(own: Path) -> int:
    """Rows of the models here: three more than their tokenizer has ids."""
    return len(read_vocab(own)) + 3


@pytest.fixture(scope="module")
def mapping(own: Path, new: Path, width: int) -> Mapping:
    return build(student=read_vocab(new), teacher=read_vocab(own, logits=width))


@pytest.fixture(scope="module")
def back(own: Path, new: Path, width: int) -> Mapping:
    return build(student=read_vocab(own, logits=width), teacher=read_vocab(new))


def llama(width: int, **changes: Any) -> Any:
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=width, **{**SIZES, **ids, **changes}))


def gemma(width: int) -> Any:
    """Tied, with embeddings that are scaled by the root of their size, and logits that are capped."""
    more = {"num_key_value_heads": 1, "head_dim": 8, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = transformers.Gemma3TextConfig(vocab_size=width, final_logit_softcapping=20.0, **{**SIZES, **more})
    return transformers.Gemma3ForCausalLM(config)


def gpt2(width: int) -> Any:
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=width, n_embd=16, n_layer=1, n_head=2, **ids)
    )


def gptj(width: int) -> Any:
    """With a head of its own that has a bias."""
    config = transformers.GPTJConfig(
        vocab_size=width, n_embd=16, n_layer=1, n_head=2, rotary_dim=4, bos_token_id=1, eos_token_id=2
    )
    model = transformers.GPTJForCausalLM(config)
    torch.nn.init.normal_(model.lm_head.bias)
    return model


MODELS: dict[str, Callable[[int], Any]] = {"llama": llama, "gemma": gemma, "gpt2": gpt2, "gptj": gptj}


def rows_of(model: Any) -> tuple[Any, Any]:
    """Embedding and head."""
    return model.get_input_embeddings().weight.detach(), model.get_output_embeddings().weight.detach()


def logits(model: Any, width: int) -> Any:
    ids = torch.arange(5, min(width, 105)).view(2, -1)
    with torch.no_grad():
        return model.eval()(ids).logits


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# What stays


@pytest.mark.parametrize("kind", MODELS)
def test_under_its_own_tokenizer_a_models_logits_are_the_same_bits(kind: str, own: Path, width: int) -> None:
    model, vocab = MODELS[kind](width), read_vocab(own, logits=width)
    moved = transplant(model, build(student=vocab, teacher=vocab))
    assert torch.equal(logits(moved.model, width), logits(model, width))
    assert moved.rows["unused"] == 3
    assert moved.model.config.to_dict() == model.config.to_dict()
    assert moved.model.generation_config.to_dict() == model.generation_config.to_dict()
    assert moved.emptied == ()


@pytest.mark.parametrize("kind", MODELS)
def test_there_and_back_every_exact_row_is_as_it_was(kind: str, mapping: Mapping, back: Mapping, width: int) -> None:
    model = MODELS[kind](width)
    there = transplant(model, mapping).model
    again = transplant(there, back)
    exact = again.plan.way == list(MADE).index("exact")
    assert exact.sum() > 250
    for before, after in zip(rows_of(model), rows_of(again.model), strict=True):
        assert torch.equal(before[exact], after[exact])


def test_the_model_that_was_given_stays_as_it_is(mapping: Mapping, width: int) -> None:
    model = llama(width)
    before = logits(model, width)
    moved = transplant(model, mapping)
    assert model.config.vocab_size == width != moved.model.config.vocab_size
    assert torch.equal(logits(model, width), before)
    body = model.model.layers[0].mlp.up_proj.weight
    assert torch.equal(moved.model.model.layers[0].mlp.up_proj.weight, body)
    assert moved.model.model.layers[0].mlp.up_proj.weight is not body


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_dtype_stays(dtype: str, mapping: Mapping, width: int) -> None:
    moved = transplant(llama(width).to(getattr(torch, dtype)), mapping)
    assert {weight.dtype for weight in rows_of(moved.model)} == {getattr(torch, dtype)}


# How rows are made


@pytest.mark.parametrize("kind", MODELS)
def test_a_split_tokens_rows_are_the_mean_of_its_pieces(kind: str, mapping: Mapping, width: int) -> None:
    model = MODELS[kind](width)
    moved = transplant(model, mapping)
    row = mapping.row("201")
    assert [link.surface for link in row.links] == [b"2", b"0", b"1"]
    assert row.rule == "digits"
    for before, after in zip(rows_of(model), rows_of(moved.model), strict=True):
        torch.testing.assert_close(after[row.id], before[[link.teacher_id for link in row.links]].mean(0))


@given(vocabs("model"), vocabs("new"))
def test_rows_are_those_of_the_plain_definition(model: Any, new: Any) -> None:
    mapping = build(student=new, teacher=model, reverse_pass=True)
    plan = plan_rows(mapping)
    old = torch.randn(len(model), 5, generator=torch.Generator().manual_seed(1))
    trained = np.flatnonzero(model.kinds <= Kind.BYTE)
    assume(len(trained) > 1)  # one row has no deviation to draw noise by
    made = make_rows(old, plan, trained, torch.Generator())
    same = mapping.student.fingerprint == mapping.teacher.fingerprint
    for token_id in range(len(new)):
        links = mapping.row(token_id).links
        # What the reverse pass adds to a row is no piece of it.
        links = [link for link in links if link.rule != "reverse"] or links
        way = list(MADE)[plan.way[token_id]]
        if same and plan.source[token_id] == token_id:
            assert torch.equal(made[token_id], old[token_id])
            continue
        if not links:
            assert way == "mean"
            continue
        expected = sum(old[link.teacher_id] for link in links) / len(links)
        if plan.apart[token_id]:
            assert way in {"special", "near"}
            assert not torch.equal(made[token_id], expected)
        elif len(links) == 1:
            assert torch.equal(made[token_id], old[links[0].teacher_id])
        else:
            assert way == "split"
            torch.testing.assert_close(made[token_id], expected)
    assert sum(plan.counts().values()) == len(new)


def test_of_two_specials_with_one_row_the_one_that_keeps_its_own_gets_no_noise() -> None:
    special = Kind.SPECIAL
    model = make_vocab(["a", ("<s>", special), ("<pad>", special)], name="model")
    new = make_vocab(["a", ("<pad>", special), ("<pad>", special)], name="new")
    plan = plan_rows(build(student=new, teacher=model))
    assert plan.source.tolist() == [0, 2, 2]
    assert plan.apart.tolist() == [False, True, False]


def test_a_row_without_pieces_is_near_the_mean_of_the_rows_that_stand_for_tokens(mapping: Mapping, width: int) -> None:
    model = llama(width)
    moved = transplant(model, mapping)
    empty = np.flatnonzero(moved.plan.way == list(MADE).index("mean"))
    assert [mapping.student.surfaces[token_id] for token_id in empty] == [b"<|end_header_id|>", b"<extra>"]
    for before, after in zip(rows_of(model), rows_of(moved.model), strict=True):
        text = before[torch.from_numpy(mapping.teacher.kinds) <= Kind.BYTE]
        away = (after[empty] - text.mean(0)).abs() / text.std(0)
        assert 0 < away.max() < 0.1


def test_input_rows_come_from_the_input_and_head_rows_from_the_head(mapping: Mapping, width: int) -> None:
    model = llama(width)
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(1.0)
        model.lm_head.weight.fill_(2.0)
    made, head = rows_of(transplant(model, mapping).model)
    torch.testing.assert_close(made, torch.ones_like(made))
    torch.testing.assert_close(head, torch.full_like(head, 2.0))


def test_a_bias_is_made_as_the_head_is(mapping: Mapping, width: int) -> None:
    model = gptj(width)
    moved = transplant(model, mapping)
    bias, row = moved.model.lm_head.bias, mapping.row("201")
    assert bias.shape == (mapping.student.sizes.logits,)
    torch.testing.assert_close(bias[row.id], model.lm_head.bias[[link.teacher_id for link in row.links]].mean())


@pytest.mark.parametrize("kind", MODELS)
def test_a_tied_head_stays_tied_and_another_apart(kind: str, mapping: Mapping, width: int) -> None:
    model = transplant(MODELS[kind](width), mapping).model
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == (kind in {"gemma", "gpt2"})
    model.tie_weights()
    assert tied == (model.get_input_embeddings().weight is model.get_output_embeddings().weight)


def test_factors_on_embeddings_and_logits_stay(mapping: Mapping, width: int) -> None:
    model = gemma(width)
    moved = transplant(model, mapping).model
    row, token_id = mapping.row("the"), torch.tensor([[mapping.row("the").id]])
    assert row.rule == "exact"
    before = model.get_input_embeddings()(torch.tensor([[row.links[0].teacher_id]]))
    assert torch.equal(moved.get_input_embeddings()(token_id), before)
    assert moved.config.final_logit_softcapping == 20.0


def test_links_of_the_reverse_pass_change_no_row(own: Path, new: Path, mapping: Mapping, width: int) -> None:
    both = build(student=read_vocab(new), teacher=read_vocab(own, logits=width), reverse_pass=True)
    assert (both.matrix.rule == RULE_NUMBER["reverse"]).any()
    model = llama(width)
    one, other = (rows_of(transplant(model, each).model)[0] for each in (mapping, both))
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_a_row_of_the_users_own_is_what_the_user_says(own: Path, new: Path, width: int) -> None:
    rows = [{"student": "<extra>", "teacher": ["<|im_start|>"]}, {"student": "cat", "teacher": ["a", "t"]}]
    mapping = build(student=read_vocab(new), teacher=read_vocab(own, logits=width), overrides=rows)
    model = llama(width)
    made, before = rows_of(transplant(model, mapping).model)[0], rows_of(model)[0]
    start, (first, second) = OWN.index("<|im_start|>"), mapping.row("cat").links
    # `<|start_header_id|>` has that row by its role, and of two special tokens with one row the second gets noise.
    torch.testing.assert_close(made[NEW.index("<extra>")], before[start], rtol=0, atol=0.01)
    expected = first.weight * before[first.teacher_id] + second.weight * before[second.teacher_id]
    torch.testing.assert_close(made[mapping.row("cat").id], expected)


# Special tokens


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_special_tokens_stay_apart(dtype: str, mapping: Mapping, width: int) -> None:
    moved = transplant(llama(width).to(getattr(torch, dtype)), mapping)
    specials = np.flatnonzero(mapping.student.kinds == Kind.SPECIAL).tolist()
    assert len(specials) == len(NEW)
    for weight in rows_of(moved.model):
        assert not any(torch.equal(weight[a], weight[b]) for a, b in combinations(specials, 2))


def test_a_special_token_has_the_row_of_its_role(mapping: Mapping, width: int) -> None:
    model = llama(width)
    made, before = rows_of(transplant(model, mapping).model)[0], rows_of(model)[0]
    pairs = {"<|begin_of_text|>": "<s>", "<|end_of_text|>": "</s>", "<|eot_id|>": "<|im_end|>"}
    pairs["<|start_header_id|>"] = "<|im_start|>"
    for name, counterpart in pairs.items():
        assert torch.equal(made[NEW.index(name)], before[OWN.index(counterpart)]), name


def test_of_two_special_tokens_with_one_row_the_namesake_has_it_unchanged() -> None:
    special = Kind.SPECIAL
    new = make_vocab(["a", (b"<x>", special), (b"<y>", special)], roles={"eot": [1, 2]})
    model = make_vocab(["a", "b", (b"<y>", special)], roles={"eot": [2]})
    plan = plan_rows(build(student=new, teacher=model))
    assert plan.source.tolist() == [0, 2, 2]
    assert plan.apart.tolist() == [False, True, False]


# Numbers of the configuration


def test_the_configuration_has_the_new_width_and_ids(mapping: Mapping, width: int) -> None:
    moved = transplant(llama(width), mapping)
    config, generation = moved.model.config, moved.model.generation_config
    assert config.vocab_size == moved.model.vocab_size == mapping.student.sizes.logits
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (0, 1, None)
    assert generation.eos_token_id == [1, 2]
    assert moved.roles == {"bos": 0, "eos": 1, "pad": None, "stops": [1, 2]}
    assert "pad_token_id" in moved.emptied
    assert moved.model.get_input_embeddings().padding_idx is None
    assert moved.model.generate(torch.tensor([[5, 6]]), max_new_tokens=3, do_sample=False).shape[0] == 1


def test_a_tokenizer_that_ends_turns_alone_ends_texts_with_them(width: int, own: Path) -> None:
    new = make_vocab(["a", (b"<|im_end|>", Kind.SPECIAL)], roles={"eot": [1]})
    model = transplant(llama(width), build(student=new, teacher=read_vocab(own, logits=width))).model
    assert model.config.eos_token_id == model.generation_config.eos_token_id == 1


def test_settings_that_name_any_token_are_renumbered_or_emptied(mapping: Mapping, width: int) -> None:
    model = llama(width)
    model.config.image_token_id = OWN.index("<|im_start|>")
    model.config.audio_token_index = 40
    model.generation_config.suppress_tokens = [7, 8]
    moved = transplant(model, mapping)
    assert moved.model.config.image_token_id == NEW.index("<|start_header_id|>")
    assert moved.model.config.audio_token_index is None
    assert moved.model.generation_config.suppress_tokens is None
    assert set(moved.emptied) >= {"audio_token_index", "generation suppress_tokens"}


def test_nested_configurations_are_changed_too(
    mapping: Mapping, own: Path, new: Path, width: int, tmp_path: Path
) -> None:
    text = {**SIZES, "vocab_size": width, "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0}
    vision = {**SIZES, "image_size": 28, "patch_size": 14}
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=3, bos_token_id=1
    )
    moved = transplant(transformers.Gemma3ForConditionalGeneration(config), mapping)
    assert moved.model.config.text_config.vocab_size == mapping.student.sizes.logits
    assert moved.model.config.vision_config.hidden_size == 16
    assert moved.model.config.image_token_index == NEW.index("<|start_header_id|>")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(moved.save(tmp_path / "out", tokenizer=new))
    assert torch.equal(rows_of(loaded)[0], rows_of(moved.model)[0])


# Seeds


def test_one_seed_gives_the_same_bits_and_another_other_noise(mapping: Mapping, width: int) -> None:
    model = llama(width)
    one, same, other = (transplant(model, mapping, seed=seed) for seed in (3, 3, 4))
    for a, b, c in zip(*(rows_of(moved.model) for moved in (one, same, other)), strict=True):
        assert torch.equal(a, b)
        different = (a != c).any(1).numpy()
        assert (different == ((one.plan.way == list(MADE).index("mean")) | one.plan.apart)).all()


# Folders


@pytest.fixture
def folder(own: Path, width: int, tmp_path: Path) -> Path:
    """A model on the disk with its tokenizer."""
    place = tmp_path / "model"
    llama(width).save_pretrained(place)
    for file in own.iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    return place


def test_a_saved_model_loads_with_its_tokenizer(folder: Path, mapping: Mapping, new: Path, tmp_path: Path) -> None:
    moved = transplant(folder, mapping)
    out = moved.save(tmp_path / "out", tokenizer=new)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(out)
    for before, after in zip(rows_of(moved.model), rows_of(loaded), strict=True):
        assert torch.equal(before, after)
    assert (out / "model.safetensors").exists()
    assert loaded.config.vocab_size == mapping.student.sizes.logits
    tokenizer, expected = transformers.AutoTokenizer.from_pretrained(out), read_vocab(new)
    text = "the cat 201, 12 and <tag> über"
    assert tokenizer(text, add_special_tokens=False).input_ids == expected.row_encoder.encode_batch([text])[0]
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|begin_of_text|>", "<|end_of_text|>")
    assert read_vocab(out).fingerprint == mapping.student.fingerprint
    assert (out / "tokenizer.json").read_bytes() == (new / "tokenizer.json").read_bytes()


def write_gguf(file: Path, width: int) -> None:
    """A Llama of one layer, without a tokenizer."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(width)
    random = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (width, 32), "output": (width, 32), "output_norm": (32,)}
    shapes |= {f"blk.0.{name}": (32,) for name in ("attn_norm", "ffn_norm")}
    matrices = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes |= {f"blk.0.{name}": (32, 32) for name in matrices}
    for name, shape in shapes.items():
        tensor = random.standard_normal(shape).astype(np.float32)
        matrix = len(shape) == 2
        writer.add_tensor(
            f"{name}.weight",
            gguf.quantize(tensor, gguf.GGMLQuantizationType.Q8_0) if matrix else tensor,
            raw_dtype=gguf.GGMLQuantizationType.Q8_0 if matrix else None,
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_model_of_a_gguf_file_can_be_written(mapping: Mapping, new: Path, width: int, tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", width)
    moved = transplant(str(tmp_path / "model.gguf"), mapping)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(moved.save(tmp_path / "out", tokenizer=new))
    assert torch.equal(logits(loaded, width), logits(moved.model, width))
    assert {weight.dtype for weight in rows_of(loaded)} == {torch.float32}


def test_the_card_says_what_was_done(folder: Path, mapping: Mapping, new: Path, tmp_path: Path) -> None:
    moved = transplant(str(folder), mapping)
    card = (moved.save(tmp_path / "out", tokenizer=str(new)) / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "# model with the tokenizer packs\n" in card
    assert f"| split | {moved.rows['split']:,} | the mean of the rows of its pieces |" in card
    assert f"- mapping: {mapping.version}\n" in card
    assert "pad_token_id" in card
    assert str(tmp_path) not in card


@pytest.mark.parametrize("give", ["bare file", "object", "backend"])
def test_a_tokenizer_may_come_as_a_file_or_an_object(
    give: str, mapping: Mapping, new: Path, width: int, tmp_path: Path
) -> None:
    source: Any = new / "tokenizer.json"
    if give == "object":
        source = transformers.AutoTokenizer.from_pretrained(new)
    elif give == "backend":
        source = Tokenizer.from_file(str(new / "tokenizer.json"))
    out = transplant(llama(width), mapping).save(tmp_path / "out", tokenizer=source)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert tokenizer("the 201").input_ids == read_vocab(new).encode_batch(["the 201"])[0]
    assert tokenizer.eos_token == "<|end_of_text|>"


def test_a_rank_file_becomes_a_tokenizer_that_transformers_reads(
    real: Callable[[str], Any], own: Path, width: int, tmp_path: Path
) -> None:
    pytest.importorskip("tiktoken")
    vocab = real("llama-3")
    moved = transplant(llama(width, hidden_size=8), build(student=vocab, teacher=read_vocab(own, logits=width)))
    out = moved.save(tmp_path / "out", tokenizer="llama-3")
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    texts = ["The 2012 report, naïve—\n\n  x = 3.14159", "слово 한국어 👩‍👩‍👧"]
    assert [tokenizer(text).input_ids for text in texts] == vocab.encode_batch(texts)
    assert tokenizer.convert_tokens_to_ids("<|eot_id|>") == 128009
    assert moved.model.generation_config.eos_token_id == [128001, 128009]
    assert read_vocab(out).roles == vocab.roles


def test_nothing_is_left_of_a_model_that_could_not_be_written(
    mapping: Mapping, own: Path, new: Path, width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = transplant(llama(width), mapping)
    with pytest.raises(MismatchError, match="the mapping's student is packs"):
        moved.save(tmp_path / "out", tokenizer=own)

    def interrupted(_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(Transplant, "model_card", interrupted)
    with pytest.raises(KeyboardInterrupt):
        moved.save(tmp_path / "out", tokenizer=new)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_replaced_only_when_it_is_a_models(
    mapping: Mapping, new: Path, width: int, tmp_path: Path
) -> None:
    moved, out = transplant(llama(width), mapping), tmp_path / "out"
    out.mkdir()
    moved.save(out, tokenizer=new)
    (out / "model-00001-of-00002.safetensors").write_bytes(b"of a model before")
    with pytest.raises(StoreError, match="is not empty"):
        moved.save(out, tokenizer=new)
    moved.save(out, tokenizer=new, overwrite=True)
    assert not (out / "model-00001-of-00002.safetensors").exists()
    (out / "notes").mkdir()
    with pytest.raises(StoreError, match="nothing but a model's files"):
        moved.save(out, tokenizer=new, overwrite=True)
    assert (out / "notes").exists()


# Refusals


def test_a_mapping_of_another_model_is_refused(folder: Path, back: Mapping, mapping: Mapping) -> None:
    with pytest.raises(MismatchError, match="the mapping's teacher is packs, and model is not it"):
        transplant(folder, back)
    with pytest.raises(
        MismatchError, match=r"the mapping's teacher splits has ids up to \d+, and the model has 40 rows"
    ):
        transplant(llama(40), mapping)


def test_weights_that_are_no_numbers_per_token_are_refused(mapping: Mapping, width: int) -> None:
    quantised = llama(width)
    quantised.lm_head.weight = torch.nn.Parameter(torch.ones(width, 16, dtype=torch.int8), requires_grad=False)
    with pytest.raises(OptionError, match="before it is quantised"):
        transplant(quantised, mapping)
    with pytest.raises(OptionError, match="expected a model of transformers, got a Linear"):
        transplant(torch.nn.Linear(2, 2), mapping)
    with pytest.raises(OptionError, match="has none"):
        transplant(transformers.LlamaModel(llama(width).config), mapping)


def test_a_further_tensor_per_token_is_refused(mapping: Mapping, width: int) -> None:
    class Counting(transformers.LlamaForCausalLM):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.frequencies = torch.nn.Parameter(torch.zeros(config.vocab_size))

    with pytest.raises(OptionError, match="frequencies has the shape"):
        transplant(Counting(llama(width).config), mapping)


def test_embeddings_for_every_layer_are_refused(mapping: Mapping, width: int) -> None:
    with pytest.raises(OptionError, match="has a second embedding for its layers"):
        transplant(llama(width, vocab_size_per_layer_input=width), mapping)


def test_a_missing_model_is_refused_in_a_sentence(mapping: Mapping, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"cannot load the model .*empty"):
        transplant(tmp_path / "empty", mapping)


def test_a_vocabulary_has_no_files_to_write(mapping: Mapping, new: Path, width: int, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="has no files to write"):
        transplant(llama(width), mapping).save(tmp_path / "out", tokenizer=read_vocab(new))


def test_it_tells_what_it_is(mapping: Mapping, width: int) -> None:
    moved = transplant(llama(width), mapping)
    assert repr(moved).startswith("Transplant(LlamaForCausalLM with the tokenizer packs: ")
    assert "two matrices" in moved._repr_html_()
    evil = replace(mapping, student=replace(mapping.student, name="x\x1b[2J\n"))
    shown = transplant(llama(width), evil)
    assert "\x1b" not in repr(shown) + shown.model_card() + shown._repr_html_()
