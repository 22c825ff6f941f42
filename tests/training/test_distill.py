"""`distill`: from folders and files to a student, in one piece or in several."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from training_world import World, far, make_llama, texts, weights, write_tokenizer
from transformers import LlamaForCausalLM

import xtoken_align
from xtoken_align.errors import CorpusError, MismatchError, OptionError, SourceError, XTokenWarning
from xtoken_align.training import DistillConfig, DistillResult, distill, rows, run, trainer, write_teacher_cache
from xtoken_align.training.config_file import from_values
from xtoken_align.training.result import headline_of
from xtoken_align.training.rows import make_rows, split

pytest.importorskip("datasets")


@pytest.fixture
def start(world: World, tmp_path: Path) -> Callable[..., DistillResult]:
    """Runs `distill` in the test's folder, with changes to a short configuration."""
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in texts(60)))

    def begin(output: str = "run", **changes: Any) -> DistillResult:
        return distill(config(output, **changes), store=world.store)

    def config(output: str, **changes: Any) -> DistillConfig:
        training = {
            "max_steps": 6,
            "per_device_train_batch_size": 4,
            "learning_rate": 0.01,
            "max_student_tokens": 24,
            "max_teacher_tokens": 24,
            "save_steps": 2,
            "save_total_limit": 1,
            "logging_steps": 2,
            "use_cpu": True,
            **changes.pop("training", {}),
        }
        values = {
            "student": {"model": str(world.student)},
            "teachers": [{"model": str(world.teacher)}],
            "texts": [str(corpus)],
            "output": str(tmp_path / output),
            "holdout": 4,
            "training": training,
            **changes,
        }
        return from_values(DistillConfig, values)

    begin.config = config
    return begin


def student(folder: Path) -> dict[str, torch.Tensor]:
    return weights(LlamaForCausalLM.from_pretrained(folder / "student"))


def test_a_student_is_distilled_and_measured(start: Any, world: World, tmp_path: Path) -> None:
    result = start(training={"max_steps": 30, "learning_rate": 0.02})
    assert (result.steps, result.rows, result.held_out, result.resumed) == (30, 56, 4, 0)
    assert result.after["kd"] < 0.8 * result.before["kd"]
    assert {"loss", "kd", "ce", "agreement"} <= result.training.keys()
    assert [teacher["name"] for teacher in result.teachers] == ["teacher"]
    made = xtoken_align.read_vocab(result.student)
    assert made.fingerprint == xtoken_align.read_vocab(world.student).fingerprint
    assert far(student(tmp_path / "run"), weights(world.load(world.student))) > 0
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "before.json",
        "checkpoints",
        "metrics.jsonl",
        "result.json",
        "run.json",
        "student",
        "texts",
    ]
    json.dumps(result.to_dict())


def test_a_run_that_has_ended_is_not_run_again(start: Any, tmp_path: Path) -> None:
    first = start()
    with pytest.MonkeyPatch.context() as patch:
        # It says so before it loads a model.
        patch.setattr(LlamaForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("a model was loaded"))
        patch.setattr(run, "load_model", None)
        start()
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    again = start(training={"logging_steps": 5})
    assert {**again.to_dict(), "seconds": 0} == {**first.to_dict(), "seconds": 0}
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_bits_per_byte_are_those_of_whole_logits(start: Any, world: World, tmp_path: Path) -> None:
    made = start(training={"max_steps": 2})
    without_labels = start("no-labels", loss={"ce_weight": 0.0}, training={"max_steps": 2})
    assert without_labels.before["bits_per_byte"] == pytest.approx(made.before["bits_per_byte"], rel=1e-5)
    _, held_out = make_rows(start.config("any"), tmp_path / "rows")

    def bits_per_byte(folder: Path) -> float:
        vocab, model = xtoken_align.read_vocab(folder), world.load(folder)
        bits = size = 0.0
        for row in held_out:
            ids = torch.tensor([[1, *vocab.encode_batch([row["text"]])[0], 2]])
            with torch.no_grad():
                # The loss of transformers is a mean over all tokens but the first.
                bits += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1) / math.log(2)
            size += len(row["text"].encode())
        return bits / size

    before, ceiling = bits_per_byte(world.student), bits_per_byte(world.teacher)
    assert made.before["bits_per_byte"] == pytest.approx(before, rel=1e-5)
    assert made.headline.startswith(f"held-out loss {before:.2f} -> ")
    # The teacher's own, from whole logits or not; of several by number.
    assert made.before["teacher_bits_per_byte"] == pytest.approx(ceiling, rel=1e-5)
    assert made.after["teacher_bits_per_byte"] == made.before["teacher_bits_per_byte"]
    assert f"; teacher {ceiling:.2f}" in made.headline
    twice = [{"model": str(world.teacher)}] * 2
    several = start("several", teachers=twice, training={"max_steps": 1, "fused": False})
    for number in (0, 1):
        assert several.after[f"teacher_bits_per_byte/{number}"] == pytest.approx(ceiling, rel=1e-5)
    assert f"; best teacher {ceiling:.2f}" in several.headline


def test_the_headline_says_how_near_the_teacher_the_student_has_come() -> None:
    def said(after: float, **teachers: float) -> str:
        measured = {"bits_per_byte": after, **{f"teacher_bits_per_byte{end}": bits for end, bits in teachers.items()}}
        whole = headline_of({"before": {"bits_per_byte": 1.5}, "after": measured, "training": {}})
        return whole.partition("%)")[2]

    assert said(1.25, **{"": 1.0}) == "; teacher 1.00, 50% of the way"
    assert said(0.99, **{"": 1.0}) == "; teacher 1.00, passed"
    assert said(1.6, **{"": 0.98}) == "; teacher 0.980"
    assert said(1.2, **{"/0": 1.2, "/1": 0.9}) == "; best teacher 0.900, 50% of the way"
    assert said(1.2) == ""


def test_what_is_logged_is_kept_line_by_line_and_once(start: Any, tmp_path: Path) -> None:
    whole = start("whole", training={"eval_steps": 3})
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], "eval_loss" in line) for line in lines] == [
        *((0, True), (1, False), (2, False), (3, True), (4, False), (6, False), (6, True), (6, True))
    ]
    assert lines[0]["eval_bits_per_byte"] == whole.before["bits_per_byte"]
    assert lines[-1]["eval_bits_per_byte"] == whole.after["bits_per_byte"]
    child = os.fork()
    if not child:
        trainer.DistillationMixin.compute_loss = at_call(6, trainer.DistillationMixin.compute_loss)
        try:
            start("cut", training={"eval_steps": 3})
        finally:
            os._exit(1)
    os.waitpid(child, 0)
    start("cut", training={"eval_steps": 3})
    again = [json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line.get("loss", line.get("eval_loss"))) for line in again] == [
        (line["step"], line.get("loss", line.get("eval_loss"))) for line in lines
    ]


class Writer:
    """In place of TensorBoard's writer: notes what it is told."""

    told: ClassVar[list[tuple[str, str, int]]] = []

    def __init__(self, log_dir: str) -> None:
        self.folder = log_dir

    def add_scalar(self, name: str, value: float, step: int) -> None:
        assert math.isfinite(value)
        self.told.append((self.folder, name, step))

    def add_text(self, *_: Any) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


def test_tensorboard_has_all_that_is_measured_in_the_runs_folder(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.integrations import integration_utils

    class StandIn(integration_utils.TensorBoardCallback):
        def __init__(self) -> None:
            self._SummaryWriter, self.tb_writer, self.logging_dir = Writer, None, None

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: True)
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", StandIn)
    Writer.told.clear()
    start(training={"report_to": "tensorboard", "eval_steps": 3})
    assert {folder for folder, _, _ in Writer.told} == {str(tmp_path / "run" / "tensorboard")}
    steps = {name: [step for _, told, step in Writer.told if told == name] for _, name, _ in Writer.told}
    # Before training, on the way, and after it.
    assert steps["eval/bits_per_byte"] == steps["eval/teacher_bits_per_byte"] == [0, 3, 6, 6]
    assert steps["train/loss"] == steps["train/bits_per_byte"] == steps["train/kd"] == [1, 2, 4, 6]
    assert not (tmp_path / "runs").exists()


def test_a_run_that_has_ended_goes_on_with_more_steps(start: Any, tmp_path: Path) -> None:
    constant = {"lr_scheduler_type": "constant"}
    whole = start("whole", training={"max_steps": 6, **constant})
    start("parts", training={"max_steps": 4, **constant})
    with pytest.raises(MismatchError, match="max_steps is 4 there, 2 here"):
        start("parts", training={"max_steps": 2, **constant})
    with pytest.raises(MismatchError, match=r"learning_rate is 0.01 there, 0.1 here"):
        start("parts", training={"max_steps": 6, "learning_rate": 0.1, **constant})
    # Killed on the way, it has not ended, and goes on.
    child = os.fork()
    if not child:
        run.write_student = die
        start("parts", training={"max_steps": 6, **constant})
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    parts = start("parts", training={"max_steps": 6, **constant})
    assert (parts.steps, parts.resumed) == (6, 6)
    assert far(student(tmp_path / "parts"), student(tmp_path / "whole")) == 0
    assert (parts.before, parts.after) == (whole.before, whole.after)


def test_more_epochs_go_on_too_and_without_a_checkpoint_nothing_does(start: Any) -> None:
    one = start(training={"max_steps": -1, "num_train_epochs": 1})
    two = start(training={"max_steps": -1, "num_train_epochs": 2})
    assert (one.steps, two.steps, two.resumed) == (14, 28, 14)
    start("none", training={"save_strategy": "no"})
    with pytest.raises(MismatchError, match="has no checkpoint to go on from"):
        start("none", training={"save_strategy": "no", "max_steps": 8})


def test_the_students_folder_says_how_it_was_made(start: Any, world: World, tmp_path: Path) -> None:
    made = start()
    card = (made.student / "README.md").read_text()
    assert made.headline in card
    assert f"| teacher | {made.teachers[0]['loss']} | {made.teachers[0]['mapping']} | 1 |" in card
    assert f"| bits_per_byte | {made.before['bits_per_byte']:.4f} | {made.after['bits_per_byte']:.4f} |" in card
    assert "learns from teacher" in card


def test_a_gguf_file_is_a_student_and_a_teacher(start: Any, world: World, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    write_gguf(world.load(world.student), world.student, tmp_path / "student.gguf", gguf)
    options = {"learning_rate": 0.02, "max_steps": 3}
    part = {"model": str(tmp_path / "student.gguf"), "tokenizer": str(world.student)}
    made = start(student=part, teachers=[part], training=options)
    assert made.before["kd"] == pytest.approx(0, abs=1e-6)
    plain = start("plain", teachers=[{"model": str(world.student)}], training=options)
    assert made.before["ce"] == pytest.approx(plain.before["ce"], rel=1e-4)
    assert far(student(tmp_path / "run"), student(tmp_path / "plain")) < 1e-3


def write_gguf(model: Any, tokenizer: Path, path: Path, gguf: Any) -> None:
    """A Llama as llama.cpp keeps it: other names, and the rows of queries and keys in another order."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    tokens = sorted(
        json.loads((tokenizer / "tokenizer.json").read_text())["model"]["vocab"].items(), key=lambda p: p[1]
    )
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([token for token, _ in tokens] + ["<pad0>", "<pad1>", "<pad2>"])
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for key, value in model.state_dict().items():
        name = key.removesuffix(".weight")
        data = value
        if name.endswith(("q_proj", "k_proj")):
            heads = config.num_attention_heads
            data = value.view(heads, 2, -1, value.shape[1]).transpose(1, 2).reshape(value.shape)
        new = whole.get(name) or "blk." + name.split(".", 3)[2] + "." + names[name.split(".", 3)[3]]
        writer.add_tensor(f"{new}.weight", data.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(count: int, call: Callable[..., Any]) -> Callable[..., Any]:
    """A function that kills its process at its n-th call."""
    seen = []

    def counted(*arguments: Any, **options: Any) -> Any:
        seen.append(1)
        return die() if len(seen) == count else call(*arguments, **options)

    return counted


MOMENTS: dict[str, tuple[Any, str, int]] = {
    "while rows are read": (rows, "pieces", 20),
    "before it has measured": (run, "write_atomically", 2),
    "before its first checkpoint": (trainer.DistillationMixin, "compute_loss", 2),
    "between two checkpoints": (trainer.DistillationMixin, "compute_loss", 4),
    "in a checkpoint": (trainer, "finish_checkpoint", 2),
    "while an old checkpoint is removed": (trainer.shutil, "rmtree", 1),
    "while the student is written": (shutil, "copyfile", 2),
    "before the result is written": (run, "write_atomically", 4),
}


def test_wherever_it_is_killed_the_student_is_the_same(start: Any, world: World, tmp_path: Path) -> None:
    # A student that draws random numbers at every step.
    shutil.copytree(world.student, tmp_path / "drawing")
    settings = json.loads((tmp_path / "drawing" / "config.json").read_text())
    (tmp_path / "drawing" / "config.json").write_text(json.dumps({**settings, "attention_dropout": 0.3}))
    changes = {
        "student": {"model": str(tmp_path / "drawing")},
        "training": {"lmbda": 0.3, "max_new_tokens": 3, "prompt_tokens": 3},
        "loss": {"scale": "dynamic"},
    }
    quiet = start("quiet", **changes)
    expected = student(tmp_path / "quiet")
    resumed = {}
    for moment, (place, name, count) in MOMENTS.items():
        child = os.fork()
        if not child:
            setattr(place, name, at_call(count, getattr(place, name)))
            try:
                start(moment, **changes)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, moment
        assert not (tmp_path / moment / "result.json").exists()
        result = start(moment, **changes)
        assert far(student(tmp_path / moment), expected) == 0, moment
        assert (result.before, result.after) == (quiet.before, quiet.after), moment
        assert result.training == quiet.training
        resumed[moment] = result.resumed
    assert resumed == dict(zip(MOMENTS, (0, 0, 0, 2, 2, 4, 6, 6), strict=True))


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(start: Any, tmp_path: Path) -> None:
    quiet = start("quiet", training={"save_total_limit": 2})
    start("hurt", training={"save_total_limit": 2})
    (tmp_path / "hurt" / "result.json").unlink()
    file = tmp_path / "hurt" / "checkpoints" / "checkpoint-6" / "optimizer.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.warns(XTokenWarning, match=r"checkpoint-6 is damaged \(optimizer.pt is not what was written\)"):
        result = start("hurt", training={"save_total_limit": 2})
    assert result.resumed == 4
    assert far(student(tmp_path / "hurt"), student(tmp_path / "quiet")) == 0
    assert result.after == quiet.after


def test_another_run_in_the_same_folder_is_refused(start: Any, tmp_path: Path) -> None:
    start()
    with pytest.raises(MismatchError, match=r"config.training.learning_rate is 0.01 there, 0.02 here"):
        start(training={"learning_rate": 0.02})
    with (tmp_path / "corpus.jsonl").open("a") as file:
        file.write('{"text": "more"}\n')
    with pytest.raises(MismatchError, match=r"texts\..*corpus.jsonl is 'content \w+' there, 'content \w+' here"):
        start()


def test_texts_that_were_changed_in_place_are_noticed(start: Any, tmp_path: Path) -> None:
    start()
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(corpus.read_text().replace("sea", "see"))
    with pytest.raises(MismatchError, match=r"corpus.jsonl is 'content"):
        start()


def test_a_run_that_came_to_nothing_may_be_corrected(start: Any, tmp_path: Path) -> None:
    (tmp_path / "later.txt").write_text("\n")
    given = {"texts": [str(tmp_path / "later.txt")]}
    with pytest.raises(CorpusError, match="there is no text"):
        start(**given)
    (tmp_path / "later.txt").write_text("the sum of 12 and 30\n" * 20)
    assert start(**given, training={"max_steps": 2}).steps == 2


def test_nothing_that_is_read_is_written_over(start: Any, world: World, tmp_path: Path) -> None:
    own = tmp_path / "mine" / "student"
    shutil.copytree(world.student, own)
    before = {path.name: path.read_bytes() for path in own.iterdir()}
    with pytest.raises(OptionError, match=r"which is what student\.model names"):
        start(output="mine", student={"model": str(own)})
    with pytest.raises(OptionError, match="no run has written it"):
        start(output="mine")
    assert {path.name: path.read_bytes() for path in own.iterdir()} == before


def test_held_out_rows_are_measured_while_training_where_the_file_says_so(start: Any, world: World) -> None:
    reports: list[tuple[int, set[str]]] = []
    config = start.config("run", training={"eval_steps": 3})
    distill(config, store=world.store, report=lambda step, _, logs: reports.append((step, set(logs))))
    assert [step for step, names in reports if "eval_agreement" in names] == [3, 6]


def test_the_student_is_uploaded_where_the_file_says_so(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads: list[dict[str, Any]] = []
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", lambda _, **given: uploads.append(given))
    for name in ("_push_from_checkpoint", "_finish_current_push"):
        monkeypatch.setattr(run.transformers.Trainer, name, lambda *_: None)
    monkeypatch.setattr(
        run.transformers.Trainer, "init_hf_repo", lambda self, *_: setattr(self, "hub_model_id", self.args.hub_model_id)
    )
    start(training={"push_to_hub": True, "hub_model_id": "me/student", "hub_token": "hf_none", "max_steps": 2})
    assert [(each["repo_id"], each["folder_path"]) for each in uploads] == [
        ("me/student", tmp_path / "run" / "student")
    ]


def test_without_a_gpu_a_run_is_on_the_processor(start: Any) -> None:
    assert start(training={"bf16": True, "use_cpu": False, "max_steps": 2}).steps == 2


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU")
def test_half_precision_without_a_gpu_is_refused(start: Any) -> None:
    with pytest.raises(OptionError, match=r"training.fp16 needs a GPU"):
        start(training={"fp16": True, "use_cpu": False})


def test_another_tokenizer_in_the_students_folder_is_refused(start: Any, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    write_tokenizer(folder, size=292)
    make_llama(292, seed=1).save_pretrained(folder)
    start(student={"model": str(folder)})
    write_tokenizer(folder, size=292, digits=True)
    with pytest.raises(MismatchError, match=r"student is '.*' there"):
        start(student={"model": str(folder)})


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapters_are_merged_at_the_end(start: Any, world: World, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    start(lora={"r": 2, "target_modules": "q_proj"}, training={"learning_rate": 0.1})
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {
        path.name for path in (tmp_path / "run" / "adapter").iterdir()
    }
    before, after = weights(world.load(world.student)), student(tmp_path / "run")
    assert [name for name in before if not torch.equal(before[name], after[name])] == [
        "model.layers.0.self_attn.q_proj.weight"
    ]


def test_a_cache_takes_the_teachers_place(start: Any, world: World, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    settings = start.config("any")
    train, held_out = make_rows(settings, tmp_path / "rows")
    rows = [*train, *held_out]
    vocab = xtoken_align.read_vocab(world.teacher)
    given = {"teacher": vocab, "top_k": 999, "dtype": "float32", "max_teacher_tokens": 24}
    write_teacher_cache(world.load(world.teacher), rows, tmp_path / "cache", **given)
    live = start("live", loss={"kind": "partition-kl"})
    teachers = [{"cache": str(tmp_path / "cache"), "tokenizer": str(world.teacher)}]
    kept = start("kept", loss={"kind": "partition-kl"}, teachers=teachers)
    assert kept.after["kd"] == pytest.approx(live.after["kd"], abs=1e-4)


def test_long_texts_become_rows_and_none_is_lost(start: Any, tmp_path: Path) -> None:
    text = " ".join(f"line {number}\n" for number in range(200))
    (tmp_path / "long.txt").write_text(text)
    settings = start.config("any", texts=[str(tmp_path / "long.txt")], longest_text=40, holdout=0)
    rows, held_out = make_rows(settings, tmp_path / "rows")
    assert "".join(row["text"] for row in rows) == text
    assert max(len(row["text"]) for row in rows) <= 40
    assert len(held_out) == 0


def test_rows_that_are_held_out_are_not_trained_on(start: Any, tmp_path: Path) -> None:
    rows, _ = make_rows(start.config("any", holdout=0), tmp_path / "rows")
    train, held_out = split(rows, 5, seed=1)
    assert (len(train), len(held_out)) == (55, 5)
    everything = [*train["text"], *held_out["text"]]
    assert sorted(everything) == sorted(rows["text"])
    assert len(split(rows, 32, seed=1)[1]) == 6
    assert len(split(rows, 5, seed=1, processes=2)[1]) == 4
    assert split(rows, 5, seed=2)[1]["text"] != held_out["text"]


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"loss": {"temprature": 1}}, OptionError, "'loss.temprature': did you mean 'loss.temperature'?"),
        ({"loss": {"temperature": -1.0}}, OptionError, "loss: temperature"),
        ({"student": {"model": "./nowhere"}}, SourceError, "there is no folder ./nowhere, which student.model names"),
        ({"lora": {"target_modules": ["nope"]}}, OptionError, "see lora.target_modules"),
        ({"texts": ["nowhere.txt"]}, CorpusError, "there is no file nowhere.txt"),
        ({"text_field": "body"}, CorpusError, "no text under 'body'"),
    ],
)
def test_what_cannot_be_had_is_refused(start: Any, changes: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error) as refusal:
        start(**changes)
    assert said in str(refusal.value)


def test_files_without_text_are_refused(start: Any, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(CorpusError, match="there is no text in"):
        start(texts=[str(tmp_path / "empty.txt")])
