"""The trainer: what does not change its result, what it logs, and what it refuses at the start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from training_world import World, arguments, far, losses, make_llama, make_trainer, texts, weights

import xtoken_align
from xtoken_align.errors import MismatchError, OptionError
from xtoken_align.training import TeacherCache, TeacherSpec, XTokenTrainer, write_teacher_cache


def trained(world: World, folder: Path, **changes: Any) -> Any:
    trainer = make_trainer(world, folder, **changes)
    trainer.train()
    return trainer


def same(left: Any, right: Any, tolerance: float = 1e-5) -> None:
    """Two trainers logged the same losses and made the same student."""
    assert losses(left) == pytest.approx(losses(right), abs=tolerance)
    assert far(weights(left.model), weights(right.model)) < 10 * tolerance


def test_a_student_learns_what_its_teacher_says(world: World, tmp_path: Path) -> None:
    trainer = trained(world, tmp_path, rows=texts(4), max_steps=20, learning_rate=2e-2, loss={"ce_weight": 0.0})
    kd, agreement = losses(trainer, "kd"), losses(trainer, "agreement")
    assert kd[-1] < 0.6 * kd[0]
    assert agreement[-1] > agreement[0]
    assert losses(trainer) == pytest.approx(kd)


@pytest.mark.parametrize("scale", ["fixed", "dynamic"])
def test_eight_batches_of_one_row_are_one_batch_of_eight(world: World, tmp_path: Path, scale: str) -> None:
    loss = {"kind": "c-kl", "scale": scale}
    whole = trained(world, tmp_path, per_device_train_batch_size=8, loss=loss)
    parts = trained(world, tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=8, loss=loss)
    same(whole, parts)
    for name in ("kd", "ce", "agreement", "scale"):
        assert losses(whole, name) == pytest.approx(losses(parts, name), abs=1e-5)
    assert (losses(whole, "scale")[-1] == 1) == (scale == "fixed")


def test_the_fused_loss_is_that_of_whole_logits(world: World, tmp_path: Path) -> None:
    same(trained(world, tmp_path), trained(world, tmp_path, fused=False))


def test_packed_rows_are_the_documents_in_them(world: World, tmp_path: Path) -> None:
    rows = texts(16)
    given = {"rows": rows, "per_device_train_batch_size": 16, "max_steps": 2}
    room = {"max_student_tokens": 48, "max_teacher_tokens": 48}
    alone = trained(world, tmp_path, **given, collate=room)
    together = trained(world, tmp_path, **given, collate={**room, "pack": True})
    made = together.distillation.collate(rows)
    assert len(made["input_ids"]) < 12
    same(alone, together)


def test_padding_on_the_left_changes_nothing(world: World, tmp_path: Path) -> None:
    same(trained(world, tmp_path), trained(world, tmp_path, collate={"padding_side": "left"}))


def test_a_teacher_of_the_same_tokenizer_is_ordinary_distillation(world: World, tmp_path: Path) -> None:
    teacher = make_llama(world.load(world.student).config.vocab_size, seed=7)
    spec = TeacherSpec(model=teacher, tokenizer=world.student)
    loss = {"kind": "partition-kl", "temperature": 2.0, "kd_weight": 0.7, "ce_weight": 0.3}
    trainer = make_trainer(world, tmp_path, teacher=[spec], loss=loss, max_steps=6)
    student = world.load(world.student)
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-3, weight_decay=0.0)
    expected = []
    live = torch.from_numpy(trainer.distillation.vocab.kinds < 4)
    batches = iter(make_trainer(world, tmp_path, teacher=[spec], max_steps=6).get_train_dataloader())
    for _ in range(6):
        batch = next(batches)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        logits, target = student(**inputs).logits, teacher(**inputs).logits.detach()
        labels = batch["labels"][:, 1:]
        ours, theirs = (
            (side[:, :-1].masked_fill(~live, -torch.inf) / 2)[labels != -100][:, live].log_softmax(-1)
            for side in (logits, target)
        )
        kd = 4 * torch.nn.functional.kl_div(ours, theirs, log_target=True, reduction="batchmean")
        own = logits[:, :-1]
        ce = torch.nn.functional.cross_entropy(own.flatten(0, 1), labels.flatten(), ignore_index=-100)
        value = 0.7 * kd + 0.3 * ce
        value.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        expected.append(value.item())
    trainer.train()
    assert losses(trainer) == pytest.approx(expected, abs=1e-5)
    assert far(weights(trainer.model), weights(student)) < 1e-4


def cached(world: World, folder: Path, top_k: int | None = None, **options: Any) -> TeacherSpec:
    vocab = xtoken_align.read_vocab(world.teacher)
    write_teacher_cache(
        world.load(world.teacher),
        texts(48),
        folder,
        teacher=vocab,
        top_k=top_k,
        max_teacher_tokens=24,
        **{"dtype": "float32", **options},
    )
    return TeacherSpec(model=folder, tokenizer=world.teacher)


def test_a_cache_of_every_token_trains_as_the_teacher_itself(world: World, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    loss = {"kind": "c-kl"}
    live = trained(world, tmp_path, loss=loss)
    same(live, trained(world, tmp_path, loss=loss, teacher=[cached(world, tmp_path / "all", 1000)]), 1e-4)


def test_a_cache_of_the_best_tokens_is_off_by_what_it_leaves_out(world: World, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    loss = {"kind": "partition-kl", "ce_weight": 0.0}
    live = losses(trained(world, tmp_path, loss=loss, max_steps=1))[0]
    kept, rest = [], []
    for top_k in (16, 64, 256):
        spec = cached(world, tmp_path / str(top_k), top_k)
        kept += losses(trained(world, tmp_path, loss=loss, max_steps=1, teacher=[spec]))
        rest.append(TeacherCache(tmp_path / str(top_k)).truncation().mean_rest)
    # What the cache leaves out is one event instead of many: a divergence can only become smaller.
    assert kept[0] < kept[1] < kept[2] < live
    assert all(live - each < 2 * left for each, left in zip(kept, rest, strict=True))


def test_a_cache_that_was_cut_to_another_length_is_refused(world: World, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    spec = cached(world, tmp_path / "cache", 8)
    with pytest.raises(MismatchError, match="max_teacher_tokens is 24 there, 20 here"):
        make_trainer(world, tmp_path, teacher=[spec], loss={"kind": "p-kl"}, collate={"max_teacher_tokens": 20})


def test_a_cache_is_refused_for_a_loss_that_needs_everything(world: World, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(OptionError, match=r"uld needs the teacher's whole distribution, .* a cache of hidden states"):
        make_trainer(world, tmp_path, teacher=[cached(world, tmp_path / "cache", 8)], loss={"kind": "uld"})


@pytest.mark.parametrize(
    ("loss", "changes"),
    [
        ({"kind": "alm"}, {"bf16": True}),
        ({"kind": "uld"}, {}),
        ({"kind": "p-kl", "compat": "nemo-rl", "merge": "mean"}, {}),
        ({"kind": "exact", "tolerance": 0.5}, {"max_steps": 1, "per_device_train_batch_size": 1}),
    ],
    ids=["alm in mixed precision", "uld", "a peer's form", "exact"],
)
def test_a_cache_of_hidden_states_trains_as_the_teacher_itself(
    world: World, tmp_path: Path, loss: dict[str, Any], changes: dict[str, Any]
) -> None:
    pytest.importorskip("pyarrow")
    live = trained(world, tmp_path, loss=loss, **changes)
    spec = cached(world, tmp_path / "hidden", keep="hidden")
    # Batches are made in another process, which has no head.
    workers = {"dataloader_num_workers": int("bf16" in changes)}
    # Two probabilities that rounding makes equal can swap their ranks, and with these ULD's slopes.
    tolerance = 1e-3 if loss["kind"] == "uld" else 1e-4
    same(live, trained(world, tmp_path, loss=loss, teacher=[spec], **workers, **changes), tolerance)


def test_a_cache_of_hidden_states_stands_among_several_teachers(world: World, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    other = TeacherSpec(model=world.load(world.other), tokenizer=world.other)
    given: dict[str, Any] = {"loss": {"kind": "alm"}, "combine": {"weigh_by": "cross-entropy"}}
    live = trained(world, tmp_path, teacher=[world.load(world.teacher), other], **given)
    spec = cached(world, tmp_path / "hidden", keep="hidden")
    same(live, trained(world, tmp_path, teacher=[spec, other], **given), 1e-4)


def test_a_mapping_of_another_tokenizer_is_refused_with_what_differs(world: World, tmp_path: Path) -> None:
    mapping = xtoken_align.build(student=world.student, teacher=world.other)
    mapping.save(tmp_path / "other.npz")
    spec = TeacherSpec(model=world.load(world.teacher), mapping=tmp_path / "other.npz")
    with pytest.raises(MismatchError, match=r"the mapping's teacher is other, and teacher is not it \(.*token"):
        make_trainer(world, tmp_path, teacher=[spec])


def test_a_mapping_of_another_width_is_refused(world: World, tmp_path: Path) -> None:
    wide = xtoken_align.read_vocab(world.teacher, logits=400)
    spec = TeacherSpec(model=world.load(world.teacher), mapping=xtoken_align.build(student=world.student, teacher=wide))
    with pytest.raises(MismatchError, match="the mapping's teacher has 400 logits, but the model has"):
        make_trainer(world, tmp_path, teacher=[spec])


def test_a_given_mapping_is_used(world: World, tmp_path: Path) -> None:
    mapping = xtoken_align.build(student=world.student, teacher=world.teacher, lead=0.7)
    spec = TeacherSpec(model=world.load(world.teacher), mapping=mapping)
    assert make_trainer(world, tmp_path, teacher=[spec]).distillation.mappings == [mapping]


def test_a_vocabulary_of_another_width_than_the_model_is_refused(world: World, tmp_path: Path) -> None:
    vocab = xtoken_align.read_vocab(world.student, logits=500)
    with pytest.raises(OptionError, match="500 logits by its vocabulary, but the model has"):
        make_trainer(world, tmp_path, tokenizer=vocab)


def test_rows_learn_from_the_teacher_that_their_column_names(world: World, tmp_path: Path) -> None:
    pair = [TeacherSpec(model=world.load(folder), weight=0.5) for folder in (world.teacher, world.other)]
    changes: dict[str, Any] = {"max_steps": 2, "loss": {"kind": "partition-kl", "ce_weight": 0.0}}
    for number, folder in enumerate((world.teacher, world.other)):
        alone = make_trainer(world, tmp_path / f"alone-{number}", teacher=world.load(folder), **changes)
        rows = [{**row, "teacher": number} for row in texts(48)]
        named = make_trainer(world, tmp_path / f"named-{number}", teacher=pair, rows=rows, **changes)
        alone.train()
        named.train()
        assert losses(named) == pytest.approx(losses(alone), rel=1e-4)
    rows = [{**row, "teacher": "the second"} for row in texts(48)]
    with pytest.raises(OptionError, match="a row's `teacher` is the number"):
        make_trainer(world, tmp_path / "words", teacher=pair, rows=rows, **changes).train()


@pytest.mark.parametrize("combine", [{"weigh_by": "cross-entropy"}, {"weigh_by": "entropy", "select": True}])
def test_teachers_are_weighed_by_row(world: World, tmp_path: Path, combine: dict[str, Any]) -> None:
    pair = [TeacherSpec(model=world.load(folder), weight=0.5) for folder in (world.teacher, world.other)]
    trainer = make_trainer(world, tmp_path, teacher=pair, combine=combine, max_steps=2, gradient_accumulation_steps=2)
    trainer.train()
    (first, *_) = [entry for entry in trainer.state.log_history if "kd/0" in entry]
    assert first["weight/0"] + first["weight/1"] == pytest.approx(1.0)
    # The parts by their weights add up to what was minimised.
    assert first["loss"] == pytest.approx(first["ce"] + 0.5 * first["kd/0"] + 0.5 * first["kd/1"], rel=1e-3)


def test_teachers_with_one_tokenizer_are_averaged(world: World, tmp_path: Path) -> None:
    teacher = world.load(world.teacher)
    changes: dict[str, Any] = {"max_steps": 2, "loss": {"kind": "partition-kl"}}
    one = make_trainer(world, tmp_path / "one", teacher=teacher, **changes)
    pair = [TeacherSpec(model=teacher, weight=0.3), TeacherSpec(model=world.load(world.teacher), weight=0.7)]
    two = make_trainer(world, tmp_path / "two", teacher=pair, combine={"average": True}, **changes)
    one.train()
    two.train()
    # The mean of a model's logits with themselves is the model.
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    assert losses(two, "kd") == pytest.approx(losses(one, "kd"), rel=1e-4)


@pytest.mark.parametrize(
    ("combine", "sentence"),
    [
        ({"weighby": "entropy"}, "no setting is called 'combine.weighby': did you mean 'combine.weigh_by'"),
        ({"weigh_by": "entropy"}, "combine says how several teachers are weighed, but there is 1"),
    ],
)
def test_a_combination_that_makes_no_sense_is_refused(
    world: World, tmp_path: Path, combine: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(OptionError, match=sentence):
        make_trainer(world, tmp_path, combine=combine)


def test_several_teachers_are_logged_each_by_itself(world: World, tmp_path: Path) -> None:
    specs = [
        TeacherSpec(model=world.load(world.teacher), weight=0.25),
        TeacherSpec(model=world.load(world.other), weight=0.75, loss={"kind": "p-kl"}),
    ]
    trainer = trained(world, tmp_path, teacher=specs, loss={"kind": "partition-kl"}, gradient_accumulation_steps=2)
    assert [loss.kind for loss in trainer.distillation.loss.losses] == ["partition-kl", "p-kl"]
    for entry in (entry for entry in trainer.state.log_history if "loss" in entry):
        assert entry["kd"] == pytest.approx(0.25 * entry["kd/0"] + 0.75 * entry["kd/1"])
        assert entry["loss"] == pytest.approx(entry["kd"] + entry["ce"], abs=1e-5)
        assert {"agreement/0", "agreement/1", "misfits/0"} <= entry.keys()


def test_some_weights_of_teachers_are_refused(world: World, tmp_path: Path) -> None:
    specs = [
        TeacherSpec(model=world.load(world.teacher), weight=0.5),
        TeacherSpec(model=world.load(world.other)),
    ]
    with pytest.raises(OptionError, match="1 of 2 have one"):
        make_trainer(world, tmp_path, teacher=specs)


def test_evaluation_measures_the_same_things(world: World, tmp_path: Path) -> None:
    loss = {"scale": "dynamic", "kd_weight": 0.5}
    trainer = make_trainer(world, tmp_path, eval_rows=texts(6, seed=5), loss=loss, per_device_eval_batch_size=1)
    before = {name: value.clone() for name, value in trainer.distillation.loss.state_dict().items()}
    found = trainer.evaluate()
    assert found["eval_loss"] == pytest.approx(0.5 * found["eval_kd"] + found["eval_ce"])
    assert 0 <= found["eval_agreement"] <= 1
    assert all(torch.equal(before[name], value) for name, value in trainer.distillation.loss.state_dict().items())
    whole = trainer.distillation(trainer.model.eval(), trainer.distillation.collate(texts(6, seed=5)))
    assert found["eval_loss"] == pytest.approx(whole.loss.item(), abs=1e-5)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["q_proj", "lm_head"]])
def test_a_student_with_adapters_trains_them_alone(world: World, tmp_path: Path, targets: list[str]) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM")
    student = peft.get_peft_model(world.load(world.student), config)
    before = weights(student)
    trainer = trained(
        world, tmp_path, model=student, rows=texts(4), max_steps=12, learning_rate=5e-2, loss={"ce_weight": 0.0}
    )
    moved = {name for name, value in weights(student).items() if not torch.equal(value, before[name])}
    assert moved
    assert all("lora_" in name for name in moved)
    assert losses(trainer, "kd")[-1] < losses(trainer, "kd")[0]


def test_mixed_precision_stays_near_full_precision(world: World, tmp_path: Path) -> None:
    full, mixed = trained(world, tmp_path, max_steps=3), trained(world, tmp_path, max_steps=3, bf16=True)
    assert losses(mixed) == pytest.approx(losses(full), rel=0.02)
    assert losses(mixed) != losses(full)


def test_the_weights_of_w_are_trained_at_their_own_rate(world: World, tmp_path: Path) -> None:
    loss = {"kind": "p-kl", "merge": "mean", "learn_w": True}
    trainer = make_trainer(world, tmp_path, loss=loss, link_learning_rate=0.5)
    before = [parameter.detach().clone() for parameter in trainer.distillation.loss.parameters()]
    trainer.train()
    after = list(trainer.distillation.loss.parameters())
    assert [group["lr"] for group in trainer.optimizer.param_groups][-1] == 0.5
    assert any(not torch.equal(left, right) for left, right in zip(before, after, strict=True))
    assert trainer.distillation.loss.learned_mapping().version != trainer.distillation.mappings[0].version


def test_the_peers_forms_are_means_of_batches_and_averaged(world: World, tmp_path: Path) -> None:
    loss = {"kind": "p-kl", "compat": "nemo-rl"}
    trainer = trained(world, tmp_path, loss=loss, gradient_accumulation_steps=4, max_steps=1)
    found = [value for name in ("loss", "kd", "ce") for value in losses(trainer, name)]
    assert found[0] == pytest.approx(found[1] + found[2], rel=1e-4)
    specs = [
        TeacherSpec(model=world.load(world.teacher), loss=loss),
        TeacherSpec(model=world.load(world.other)),
    ]
    with pytest.raises(OptionError, match="give compat to all teachers or to none"):
        make_trainer(world, tmp_path, teacher=specs)


def test_columns_that_the_collator_reads_may_not_be_removed(world: World, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="remove_unused_columns=False"):
        make_trainer(world, tmp_path, remove_unused_columns=True)


@pytest.mark.parametrize(("name", "value"), [("lmbda", 1.5), ("max_new_tokens", 0), ("generation_temperature", 0.0)])
def test_arguments_out_of_range_are_refused(tmp_path: Path, name: str, value: float) -> None:
    with pytest.raises(OptionError, match=name):
        arguments(tmp_path, **{name: value})


def test_an_unknown_option_of_the_loss_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="temprature"):
        make_trainer(world, tmp_path, loss={"temprature": 2.0})


def test_a_mistaken_name_is_refused_with_the_nearest(world: World, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"'loss.temprature': did you mean 'loss.temperature'"):
        make_trainer(world, tmp_path, loss={"temprature": 2.0})
    with pytest.raises(OptionError, match=r"'collate.max_student_token': did you mean 'collate.max_student_tokens'"):
        make_trainer(world, tmp_path, collate={"max_student_token": 2})


def test_arguments_of_another_trainer_are_refused(world: World, tmp_path: Path) -> None:
    plain = transformers.TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    teachers = [TeacherSpec(model=world.load(world.teacher))]
    with pytest.raises(OptionError, match="expected an XTokenConfig as args, got TrainingArguments"):
        XTokenTrainer(world.load(world.student), plain, teacher=teachers)


def test_a_cache_that_was_opened_with_its_vocabulary_needs_no_tokenizer(world: World, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    given = {"top_k": 64, "max_teacher_tokens": 24, "dtype": "float32"}
    write_teacher_cache(world.load(world.teacher), texts(48), tmp_path / "cache", teacher=world.teacher, **given)
    vocab = xtoken_align.read_vocab(world.teacher)
    specs = [
        TeacherSpec(model=TeacherCache(tmp_path / "cache", teacher=vocab)),
        TeacherSpec(model=tmp_path / "cache", tokenizer=world.teacher),
    ]
    same(*(trained(world, tmp_path / str(number), teacher=[spec]) for number, spec in enumerate(specs)))
    with pytest.raises(OptionError, match="has no tokenizer"):
        make_trainer(world, tmp_path, teacher=[TeacherSpec(model=tmp_path / "cache")])
    with pytest.raises(OptionError, match="a row is a dict"):
        write_teacher_cache(world.load(world.teacher), ["the sum"], tmp_path / "other", teacher=vocab)
