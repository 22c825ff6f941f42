"""On-policy batches: what the student writes, and what the teacher is told of it."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from training_world import COLLATE, World, far, losses, make_llama, make_trainer, texts, weights

import xtoken_align
from xtoken_align.errors import OptionError, XTokenWarning
from xtoken_align.losses import XTokenLoss
from xtoken_align.training import Answer, Distillation, OnPolicy, TeacherSpec, write_teacher_cache

ON: dict[str, Any] = {"lmbda": 1.0, "max_new_tokens": 6, "prompt_tokens": 3}

CHAT = """{% for message in messages %}<s>{{ message.role }}: {{ message.content }}</s>{% endfor %}"""

ROOM = {"max_student_tokens": 60, "max_teacher_tokens": 60}


def drawn(trainer: Any, rows: list[dict[str, Any]], step: int = 0, rank: int = 0) -> dict[str, Any]:
    batch: dict[str, Any] = trainer._on_policy(trainer.model, rows, step, rank=rank)
    return batch


def make_policy(world: World, **options: Any) -> OnPolicy:
    """On-policy batches for a loop of one's own."""
    collate = xtoken_align.SpanCollator(student=vocab_of(world, world.student), teacher=vocab_of(world, world.teacher))
    return OnPolicy(collate=collate, **{"max_new_tokens": 6, "prompt_tokens": 3, **options})


def vocab_of(world: World, folder: Path) -> Any:
    return xtoken_align.read_vocab(folder, logits=world.load(folder).config.vocab_size)


def uniform(world: World) -> Any:
    """A student that holds all tokens for equally likely."""
    model = world.load(world.student)
    torch.nn.init.zeros_(model.lm_head.weight)
    return model


def draws(rows: int, tokens: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).random((rows, tokens))


def prompts(world: World, lengths: list[int]) -> list[Any]:
    """Prompts of given lengths, each with BOS."""
    made = np.random.default_rng(0)
    return [np.append(1, made.integers(3, 280, length - 1)) for length in lengths]


# Which batches


def test_without_lambda_nothing_changes(world: World, tmp_path: Path) -> None:
    off = make_trainer(world, tmp_path)
    zero = make_trainer(world, tmp_path, **{**ON, "lmbda": 0.0})
    off.train()
    zero.train()
    assert losses(off) == losses(zero)
    assert far(weights(off.model), weights(zero.model)) == 0


def test_lambda_is_the_share_of_batches(world: World, tmp_path: Path) -> None:
    trainer = make_trainer(world, tmp_path, **{**ON, "lmbda": 0.3, "max_new_tokens": 1})
    drawn_ones = ["truncated" in drawn(trainer, texts(1), step) for step in range(200)]
    assert 40 < sum(drawn_ones) < 80
    data = trainer.distillation.collate(texts(1))
    other = drawn(trainer, texts(1), drawn_ones.index(False))
    assert torch.equal(other["labels"], data["labels"])


def test_with_lambda_1_no_answer_of_the_data_is_seen(world: World, tmp_path: Path) -> None:
    beginnings = texts(24)
    endings = [" of nobody", " 42 2026"]
    trained = []
    for ending in endings:
        rows = [{"prompt": row["text"], "text": row["text"] + ending} for row in beginnings]
        trained.append(make_trainer(world, tmp_path / ending.strip(), **ON, rows=rows))
    # Rows that have no answer at all will do.
    trained.append(
        make_trainer(world, tmp_path / "prompts", **ON, rows=[{"prompt": row["text"]} for row in beginnings])
    )
    for trainer in trained:
        trainer.train()
        assert losses(trainer) == losses(trained[0])
        assert far(weights(trainer.model), weights(trained[0].model)) == 0


def test_prompts_alone_are_nothing_to_learn_or_to_measure_from(world: World, tmp_path: Path) -> None:
    rows = [{"prompt": "the sum"}] * 8
    half = make_trainer(world, tmp_path / "half", **{**ON, "lmbda": 0.5}, rows=rows)
    with pytest.raises(OptionError, match="rows need a `text`"):
        half.train()
    trainer = make_trainer(world, tmp_path / "whole", **ON, rows=rows, eval_rows=rows)
    with pytest.raises(OptionError, match="nothing but a prompt"):
        trainer.evaluate()


# What the teacher is told


def test_both_sides_of_what_was_written_are_one_text(world: World, tmp_path: Path) -> None:
    trainer = make_trainer(world, tmp_path, **ON)
    student, teacher = trainer.distillation.vocab, trainer.distillation.teacher_vocabs[0]
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(world.teacher)
    rows = texts(4)
    batch = drawn(trainer, rows)
    spans = batch["teachers"][0]["spans"].spans.numpy()
    given = trainer.distillation.collate(rows)["input_ids"].numpy()
    for row in range(4):
        ids = spans.student_ids[row][spans.student_mask[row]]
        assert ids[:4].tolist() == given[row][:4].tolist()
        assert len(ids) <= 4 + 6
        said = b"".join(student.surfaces[token] for token in ids if student.kinds[token] < 2)
        theirs = spans.teacher_ids[row][spans.teacher_mask[row]]
        # What the cut left of a character is not read.
        text = codecs.getincrementaldecoder("utf-8")("replace").decode(said)
        ended = ids[-1] == student.roles["eos"][0]
        own = tokenizer(text, add_special_tokens=False).input_ids
        assert theirs.tolist() == [*teacher.roles["bos"], *own, *(teacher.roles["eos"] if ended else ())]
        assert not spans.student_loss_mask[row][:4].any()
        assert spans.student_loss_mask[row][4 : len(ids)].all()
    used = spans.predictions()
    assert len(used) > 0
    assert set((used.student % spans.student.shape[1]).tolist()) <= set(range(3, 10))
    assert (batch["labels"] == -100).all()


def test_the_ids_that_were_sampled_are_the_ids_that_are_scored(world: World) -> None:
    policy, student = make_policy(world), world.load(world.student)
    asked = policy.prompts(texts(3))
    answers = policy.write(student, [prompt.ids for prompt in asked[0]], draws(3, 6))
    batch = policy.batch(asked, answers)
    assert batch["truncated"].tolist() == [not answer.ended for answer in answers]
    for row, (prompt, answer) in enumerate(zip(asked[0], answers, strict=True)):
        whole = [*prompt.ids.tolist(), *answer.ids.tolist()]
        assert batch["student_input_ids"][row].tolist()[: len(whole)] == whole
        assert batch["student_attention_mask"][row].sum() == len(whole)


def test_of_a_chat_the_student_writes_the_answer(world: World, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    collate = {"student_template": CHAT, "teacher_template": CHAT, **ROOM}
    trainer = make_trainer(world, tmp_path, **ON, collate=collate)
    messages = [{"role": "user", "content": "the sum of 12"}, {"role": "assistant", "content": "is 42"}]
    batch = drawn(trainer, [{"messages": messages}])
    spans = batch["teachers"][0]["spans"].spans.numpy()
    student, teacher = trainer.distillation.vocab, trainer.distillation.teacher_vocabs[0]
    for vocab, ids in ((student, spans.student_ids[0]), (teacher, spans.teacher_ids[0])):
        said = b"".join(vocab.surfaces[token] for token in ids).decode(errors="ignore")
        assert said.startswith("<s>user: the sum of 12</s><s>assistant:")
        assert "42" not in said[:45]


def test_several_teachers_each_read_their_own_ids(world: World, tmp_path: Path) -> None:
    teachers = [TeacherSpec(model=world.load(folder), tokenizer=folder) for folder in (world.teacher, world.other)]
    trainer = make_trainer(world, tmp_path, **ON, teacher=teachers)
    batch = drawn(trainer, texts(4))
    for side, vocab in zip(batch["teachers"], trainer.distillation.teacher_vocabs, strict=True):
        spans = side["spans"].spans.numpy()
        assert spans.student_ids.tolist() == batch["input_ids"].tolist() or (~spans.student_mask).any()
        assert len(spans.predictions()) > 0
        assert spans.teacher_ids.max() < len(vocab)
    trainer.train()
    assert all(np.isfinite(losses(trainer)))


# How it writes


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mamba"])
def test_prompts_of_several_lengths_are_continued_as_one_by_one(
    world: World, name: str, batch_size: int | None
) -> None:
    width = len(vocab_of(world, world.student))
    torch.manual_seed(0)
    small: dict[str, Any] = {"vocab_size": width, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    shape: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "initializer_range": 0.5}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 24}
    model = {
        "llama": lambda: make_llama(width, seed=1),
        "gpt2": lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(**small, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5)
        ),
        "gemma2": lambda: transformers.Gemma2ForCausalLM(
            transformers.Gemma2Config(**small, **shape, **heads, sliding_window=4, query_pre_attn_scalar=8)
        ),
        "mamba": lambda: transformers.MambaForCausalLM(transformers.MambaConfig(**small, **shape, state_size=4)),
    }[name]().eval()
    policy = make_policy(world, batch_size=batch_size)
    some, numbers = prompts(world, [9, 2, 5, 2, 7]), draws(5, 6)
    together = policy.write(model, some, numbers)
    alone = [policy.write(model, [one], numbers[row : row + 1])[0] for row, one in enumerate(some)]
    assert [answer.ids.tolist() for answer in together] == [answer.ids.tolist() for answer in alone]
    assert [answer.ended for answer in together] == [answer.ended for answer in alone]
    assert max(len(answer.ids) for answer in together) == 6
    # As the model itself goes on from its own likeliest tokens, without any padding.
    policy = make_policy(world, temperature=1e-3)
    ids = torch.from_numpy(some[0])[None]
    with torch.no_grad():
        for _ in range(3):
            logits = model(ids).logits[0, -1, : width - 3]
            ids = torch.cat([ids, logits.argmax()[None, None]], dim=1)
    assert policy.write(model, some, numbers)[0].ids[:3].tolist() == ids[0, len(some[0]) :].tolist()


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 0.6), (1.0, 1e-6)])
def test_tokens_come_as_often_as_their_probability_says(world: World, temperature: float, top_p: float) -> None:
    model, count = world.load(world.student), 2000
    policy = make_policy(world, temperature=temperature, top_p=top_p, max_new_tokens=1)
    prompt = np.array([1, 70])
    even = (np.arange(count)[:, None] + 0.5) / count
    written = [int(answer.ids[0]) for answer in policy.write(model, [prompt] * count, even)]
    with torch.no_grad():
        logits = model(torch.from_numpy(prompt)[None]).logits[0, -1].double()
    logits[-3:] = -torch.inf  # no tokens
    mass = (logits / temperature).softmax(0)
    order = mass.argsort(descending=True)
    kept = order[mass[order].cumsum(0) - mass[order] < top_p]
    expected = torch.zeros_like(mass).index_put((kept,), mass[kept] / mass[kept].sum())
    found = torch.bincount(torch.tensor(written), minlength=len(mass)) / count
    assert (found - expected).abs().max() <= 1.01 / count
    assert len(kept) == 1 or (expected > 1 / count).sum() > 3


def test_answers_end_by_role_and_by_what_the_model_lists(world: World) -> None:
    model, policy = uniform(world), make_policy(world, max_new_tokens=40)
    assert policy.stops(model) == [2]
    ends: dict[int, set[int]] = {2: set(), 50: set()}
    for stops in ([2], list(range(40, 50))):
        model.generation_config.eos_token_id = stops
        answers = policy.write(model, prompts(world, [3] * 60), draws(60, 40))
        for answer in answers:
            inside = np.isin(answer.ids, [2, *stops])
            assert inside[:-1].sum() == 0
            assert inside[-1] == answer.ended
            assert answer.ended or len(answer.ids) == 40
            assert answer.ids.max() < len(policy._vocab) - 3  # logits that are no tokens
        ends[2 if stops == [2] else 50] = {int(answer.ids[-1]) for answer in answers if answer.ended}
    assert ends[2] == {2}
    assert len(ends[50] - {2}) > 5


def test_an_answer_that_ends_has_an_end_with_weight_and_one_that_does_not_has_none(world: World) -> None:
    policy = make_policy(world)
    asked = policy.prompts([{"prompt": "the sum"}] * 2)
    is_ = np.array(policy._vocab.encode_batch([" is"])[0])
    batch = policy.batch(asked, [Answer(np.append(is_, 2), ended=True), Answer(is_, ended=False)])
    spans = batch["spans"].numpy()
    assert batch["truncated"].tolist() == [False, True]
    assert spans.weight.sum(1).tolist() == [2, 1]
    assert [2 in spans.teacher_ids[row][spans.teacher_mask[row]] for row in range(2)] == [True, False]


def test_what_a_models_files_say_of_sampling_does_not_count(world: World) -> None:
    model, policy = world.load(world.student), make_policy(world)
    some, numbers = prompts(world, [3, 5]), draws(2, 6)
    expected = [answer.ids.tolist() for answer in policy.write(model, some, numbers)]
    said = {"repetition_penalty": 9.0, "top_k": 1, "temperature": 0.1, "do_sample": True, "min_new_tokens": 6}
    model.generation_config = transformers.GenerationConfig(**said, eos_token_id=2, suppress_tokens=expected[0][:1])
    assert [answer.ids.tolist() for answer in policy.write(model, some, numbers)] == expected
    assert model.generation_config.repetition_penalty == 9.0


def test_dropout_is_off_and_every_module_is_left_in_its_mode(world: World) -> None:
    width = len(vocab_of(world, world.student))
    model = make_llama(width, seed=1, attention_dropout=0.9, num_hidden_layers=2).train()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    policy, some, numbers = make_policy(world), prompts(world, [3, 5]), draws(2, 6)
    state = torch.random.get_rng_state()
    answers = [policy.write(model, some, numbers) for _ in range(2)]
    assert torch.equal(state, torch.random.get_rng_state())
    assert [module.training for module in model.modules()] == modes
    answers.append(policy.write(model.eval(), some, numbers))
    assert all([one.ids.tolist() for one in each] == [one.ids.tolist() for one in answers[0]] for each in answers)


def test_answers_keep_within_a_row_and_a_models_positions(world: World) -> None:
    collate = xtoken_align.SpanCollator(
        student=vocab_of(world, world.student), teacher=vocab_of(world, world.teacher), **COLLATE
    )
    policy = OnPolicy(collate=collate, max_new_tokens=10, batch_size=2)
    some, numbers = prompts(world, [20, 3, 22]), draws(3, 10)
    answers = policy.write(uniform(world), some, numbers)
    assert [len(answer.ids) for answer in answers] == [4, 10, 2]
    assert not any(answer.ended for answer in answers)
    with pytest.warns(XTokenWarning, match="1 of 2 prompts fill the 24 tokens"):
        answers = policy.write(uniform(world), prompts(world, [24, 3]), numbers[:2])
    assert [len(answer.ids) for answer in answers] == [0, 10]
    short = make_llama(len(policy._vocab), seed=1, max_position_embeddings=8)
    torch.nn.init.zeros_(short.lm_head.weight)
    answers = make_policy(world, max_new_tokens=10).write(short, prompts(world, [5, 3]), numbers[:2])
    assert [len(answer.ids) for answer in answers] == [3, 5]


# The same again


def test_what_is_drawn_depends_on_the_step_and_the_process_alone(world: World, tmp_path: Path) -> None:
    trainer, other = (make_trainer(world, tmp_path, **ON) for _ in range(2))
    rows = texts(3)
    state = torch.random.get_rng_state()
    first = drawn(trainer, rows, 5)["input_ids"]
    assert torch.equal(state, torch.random.get_rng_state())
    torch.rand(7)
    assert torch.equal(first, drawn(other, rows, 5)["input_ids"])
    for step, rank in ((6, 0), (5, 1)):
        again = drawn(trainer, rows, step, rank)["input_ids"]
        assert again.shape != first.shape or not torch.equal(first, again)


def test_it_does_not_matter_how_many_rows_are_continued_at_a_time(world: World, tmp_path: Path) -> None:
    accumulated = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "lmbda": 0.6}
    trained = []
    for size in (1, 3, 8, None):
        trainer = make_trainer(world, tmp_path / str(size), **{**ON, **accumulated}, generation_batch_size=size)
        trainer.train()
        trained.append(losses(trainer))
    for each in trained[1:]:
        assert each == pytest.approx(trained[0], rel=1e-6)


# Learning


@pytest.mark.parametrize(
    "loss", [{}, {"divergence": "reverse"}, {"divergence": "jsd", "beta": 0.5}, {"kind": "alm"}], ids=str
)
def test_a_student_learns_from_what_it_writes(world: World, tmp_path: Path, loss: dict[str, Any]) -> None:
    trainer = make_trainer(
        world, tmp_path, **ON, max_steps=16, learning_rate=2e-2, per_device_train_batch_size=8, loss=loss
    )
    batch = drawn(trainer, texts(16, seed=4), 99)
    before = trainer.distillation(trainer.model, batch).kd
    trainer.train()
    assert trainer.distillation(trainer.model, batch).kd < (0.999 if loss.get("kind") == "alm" else 0.8) * before
    assert losses(trainer) == pytest.approx(losses(trainer, "kd"))
    assert not losses(trainer, "ce")
    assert trainer.model.training
    assert len(losses(trainer, "completions/clipped_ratio")) == 16
    assert all(1 <= length <= 6 for length in losses(trainer, "completions/mean_length"))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapters_write_what_they_have_learnt(world: World, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(
        world.load(world.student), peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    trainer = make_trainer(world, tmp_path, **ON, model=model, learning_rate=5e-2, max_steps=8)
    before = drawn(trainer, texts(8), 1)["input_ids"]
    trainer.train()
    after = drawn(trainer, texts(8), 1)["input_ids"]
    assert before.shape != after.shape or not torch.equal(before, after)


def test_a_loop_of_ones_own_needs_no_trainer(world: World, tmp_path: Path) -> None:
    student, teacher = world.load(world.student), world.load(world.teacher)
    distillation = Distillation(student, teacher=teacher, collate=COLLATE, store=world.store)
    whole = OnPolicy(collate=distillation.collate, max_new_tokens=6, prompt_tokens=3)
    losses_of = [distillation(student, whole(student, texts(4), step)).loss.item() for step in range(3)]
    # All by hand: a collator, a loss, and two models.
    loss_fn = XTokenLoss(distillation.mappings[0])
    policy = make_policy(world)
    for step, expected in enumerate(losses_of):
        batch = policy(student, texts(4), step)
        logits = [
            model(batch[f"{side}_input_ids"], attention_mask=batch[f"{side}_attention_mask"]).logits
            for model, side in ((student, "student"), (teacher, "teacher"))
        ]
        out = loss_fn(logits[0], logits[1].detach(), batch["spans"], labels=batch["labels"])
        assert out.loss.item() == pytest.approx(expected, rel=1e-5)


# Mistakes


def test_options_that_make_no_sense_are_all_named(world: World) -> None:
    with pytest.raises(OptionError, match="3 mistakes") as raised:
        make_policy(world, lmbda=2, top_p=0, max_new_tokens=0)
    assert "top_p must be above 0, but it is 0" in str(raised.value)
    with pytest.raises(OptionError, match="temperature must be a finite number"):
        make_policy(world, temperature=float("inf"))


def test_a_collator_that_keeps_no_rows_is_refused(world: World, tmp_path: Path) -> None:
    trainer = make_trainer(world, tmp_path, **ON)
    trainer.data_collator = Distillation(
        trainer.model, teacher=world.load(world.teacher), collate=COLLATE, store=world.store
    ).collate
    with pytest.raises(OptionError, match="leave data_collator out"):
        trainer.train()


def test_a_cached_teacher_cannot_answer_what_the_student_writes(world: World, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    vocab = xtoken_align.read_vocab(world.teacher)
    model = world.load(world.teacher)
    write_teacher_cache(model, texts(4), tmp_path / "c", teacher=vocab, top_k=4, max_teacher_tokens=24)
    spec = TeacherSpec(model=tmp_path / "c", tokenizer=world.teacher)
    with pytest.raises(OptionError, match="lmbda=0"):
        make_trainer(world, tmp_path, **ON, teacher=[spec], loss={"kind": "p-kl"})


def test_packed_rows_have_no_single_beginning(world: World, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="leave pack out"):
        make_trainer(world, tmp_path, **ON, collate={"pack": True})
