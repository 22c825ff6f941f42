"""The configuration of `distill`: what is read, and how what makes no sense is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xtoken_align.errors import OptionError
from xtoken_align.losses import LossOptions
from xtoken_align.losses.kinds import PEERS
from xtoken_align.training import DistillConfig, LoraConfig, StudentConfig, TeacherConfig, XTokenConfig, read_config
from xtoken_align.training.config import LOSS_WORDS
from xtoken_align.training.config_file import from_values

LEAST: dict[str, Any] = {
    "student": {"model": "./student"},
    "teachers": [{"model": "./teacher"}],
    "texts": ["a.txt"],
    "output": "run",
}


def read(tmp_path: Path, **changes: Any) -> DistillConfig:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**LEAST, **changes}))
    return read_config(path)


def test_the_least_that_a_file_says_is_enough(tmp_path: Path) -> None:
    config = read(tmp_path)
    assert config.teachers == (TeacherConfig(model="./teacher"),)
    assert config.training == XTokenConfig()
    assert config.characters == 3 * 512
    assert config.lora is None


def test_everything_can_be_said(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        teachers=[
            {"cache": "c", "tokenizer": "qwen3", "weight": 1, "loss": {"kind": "p-kl"}},
            {"model": "m", "weight": 2},
        ],
        lora={"r": 4, "target_modules": ["q_proj"]},
        training={"lr_scheduler_type": "linear", "learning_rate": 1.0e-3, "optim": "adafactor", "report_to": ["wandb"]},
        loss={"temperature": 2.0},
        longest_text=100,
    )
    assert config.teachers[0].weight == 1.0
    assert config.lora == LoraConfig(r=4, target_modules=("q_proj",))
    assert config.training.learning_rate == 1e-3
    assert config.training.optim == "adafactor"
    assert config.training.report_to == ["wandb"]
    assert config.characters == 100


def test_one_teacher_and_one_text_need_no_list(tmp_path: Path) -> None:
    assert read(tmp_path, teachers={"model": "./teacher"}).teachers == (TeacherConfig(model="./teacher"),)
    assert read(tmp_path, texts="a.txt").texts == ("a.txt",)
    assert read(tmp_path, lora={"target_modules": "q_proj"}).lora == LoraConfig(target_modules=("q_proj",))


@pytest.mark.parametrize("spelling", ["c-kl", "C_KL", "c_kl", "CKL", "C-KL"])
def test_words_are_known_however_they_are_spelled(tmp_path: Path, spelling: str) -> None:
    config = read(
        tmp_path,
        student={"model": "./student", "dtype": "bf16"},
        loss={"kind": spelling, "temperature": "2e0"},
        training={"learning_rate": "1e-4", "max_steps": "2e3", "lr_scheduler_type": "Cosine", "save_strategy": False},
    )
    assert config.student.dtype == "bfloat16"
    assert config.loss == {"kind": "c-kl", "temperature": 2}
    assert (config.training.learning_rate, config.training.max_steps) == (1e-4, 2000)
    assert (config.training.lr_scheduler_type, config.training.save_strategy) == ("cosine", "no")


def test_every_word_of_the_loss_is_one_that_it_takes() -> None:
    for name, words in LOSS_WORDS.items():
        for word in words:
            of_kind = {"kind": PEERS[word][0]} if name == "compat" else {}
            options = {"kind": "auto", **of_kind, name: word}
            assert getattr(LossOptions(**options), name) == word
        with pytest.raises(OptionError):
            LossOptions(**{"kind": "auto", name: "another"})


def test_an_output_that_cannot_be_made_is_told_with_all_other_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.txt").write_text("some text\n")
    (tmp_path / "link").symlink_to("nowhere")
    config = "student: {{model: ./nowhere}}\nteachers: {{model: user/repo}}\ntexts: {0}/notes.txt\noutput: {0}/{1}\n"
    path = tmp_path / "run.yaml"
    for output in ("notes.txt/run", "link"):
        path.write_text(config.format(tmp_path, output))
        with pytest.raises(OptionError, match=r"(?s)no folder ./nowhere.*is no folder: choose another output"):
            read_config(path, files=True)
    monkeypatch.setattr(os, "access", lambda *_: False)
    path.write_text(config.format(tmp_path, "deep/run"))
    with pytest.raises(OptionError, match=rf"output is .*deep/run, and {tmp_path} cannot be written: choose another"):
        read_config(path, files=True)


def test_a_name_that_no_file_can_have_is_that_of_a_missing_one(tmp_path: Path) -> None:
    path, name = tmp_path / "run.yaml", "./" + "x" * 300
    path.write_text(
        f"student: {{model: {name}, chat_template: {name}}}\nteachers: {{cache: {name}, tokenizer: {name}}}\n"
        f"texts: [{name}, {name}*]\noutput: {name}\n"
    )
    with pytest.raises(OptionError, match=f"(?s)run.yaml has 6 mistakes:.*there is no file {name}"):
        read_config(path, files=True)


def test_missing_files_are_told_with_all_other_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    path = tmp_path / "run.yaml"
    path.write_text(
        "student: {model: ./nowhere}\nteachers: {cache: ./none, tokenizer: ./nothing}\ntexts: [gone.txt, b*.txt]\n"
        "output: run\nlr: 1\ntraining: {push_to_hub: true, hub_model_id: me/it}\n"
    )
    with pytest.raises(OptionError) as refusal:
        read_config(path, files=True)
    assert [line.removeprefix(f"  {path}:").split(":")[0] for line in str(refusal.value).split("\n")[1:]] == [
        *("1", "2", "2", "3", "3", "5", "6")
    ]
    assert "no file fits the pattern b*.txt" in str(refusal.value)
    assert "training.push_to_hub needs a token of the Hub" in str(refusal.value)


def test_the_names_that_a_user_of_trl_knows_are_the_names(tmp_path: Path) -> None:
    training = {
        "max_steps": 1000,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 8,
        "learning_rate": 2.0e-5,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 10,
        "weight_decay": 0.01,
        "save_steps": 50,
        "save_total_limit": 3,
        "eval_steps": 50,
        "logging_steps": 5,
        "report_to": "tensorboard",
        "push_to_hub": True,
        "hub_model_id": "me/student",
        "bf16": True,
        "gradient_checkpointing": True,
        "seed": 7,
        "lmbda": 0.5,
        "max_new_tokens": 64,
        "top_p": 0.95,
        "generation_temperature": 0.9,
        "generation_batch_size": 16,
    }
    config = read(tmp_path, training=training).training
    for name, value in training.items():
        assert getattr(config, name) == (["tensorboard"] if name == "report_to" else value)
    assert config.eval_strategy == "steps"


@pytest.mark.parametrize(
    ("old", "said"),
    [
        ({"steps": 3}, "training.steps is called max_steps"),
        ({"lr": 1}, "training.lr is called learning_rate"),
        ({"grad_accum": 1}, "training.grad_accum is called gradient_accumulation_steps"),
        ({"max_seq_len": 1}, "training.max_seq_len is called max_student_tokens"),
        ({"epochs": 1}, "training.epochs is called num_train_epochs"),
        ({"batch_size": 3}, "training.batch_size is called per_device_train_batch_size"),
        ({"accumulation": 3}, "training.accumulation is called gradient_accumulation_steps"),
        ({"schedule": "linear"}, "training.schedule is called lr_scheduler_type"),
        ({"save_every": 3}, "training.save_every is called save_steps"),
        ({"keep": 3}, "training.keep is called save_total_limit"),
        ({"log_every": 3}, "training.log_every is called logging_steps"),
        ({"workers": 3}, "training.workers is called dataloader_num_workers"),
        ({"precision": "bfloat16"}, "training.precision is written as bf16: true"),
        ({"device": "cpu"}, "training.device is written as use_cpu: true"),
        ({"max_completion_length": 3}, "training.max_completion_length is called max_new_tokens"),
        ({"beta": 0.5}, "training.beta is beta under `loss`"),
        ({"output_dir": "run"}, "training.output_dir is the file's `output`"),
    ],
)
def test_an_old_name_is_refused_with_the_new_one(tmp_path: Path, old: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError) as refusal:
        read(tmp_path, training=old)
    assert said in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"techers": []}, "no setting is called 'techers': did you mean 'teachers'?"),
        ({"training": {"learning-rate": 1.0}}, "'training.learning-rate': did you mean 'training.learning_rate'?"),
        ({"teachers": [{"modle": "x"}]}, "'teachers[0].modle': did you mean 'teachers[0].model'?"),
        ({"training": {"zzz": 1}}, "no setting is called 'training.zzz'. The settings are those of XTokenConfig"),
        ({"training": {"max_steps": "8"}}, "training.max_steps must be a whole number, but it is '8'"),
        ({"training": {"max_steps": True}}, "training.max_steps must be a whole number, but it is True"),
        ({"training": {"max_steps": 0}}, "training.max_steps must be at least 1, or -1"),
        ({"training": {"learning_rate": "fast"}}, "training.learning_rate must be a number, but it is 'fast'"),
        ({"training": {"learning_rate": float("inf")}}, "training.learning_rate must be a finite number"),
        (
            {"training": {"per_device_train_batch_size": 0}},
            "per_device_train_batch_size must be at least 1, but it is 0",
        ),
        ({"training": {"lr_scheduler_type": "cosin"}}, "but it is 'cosin': did you mean cosine?"),
        ({"training": {"optim": "adamw_torchh"}}, "but it is 'adamw_torchh': did you mean adamw_torch?"),
        ({"training": {"lmbda": 2}}, "training.lmbda must be at most 1, but it is 2"),
        ({"training": {"top_p": 0}}, "training.top_p must be above 0, but it is 0"),
        ({"training": {"top_p": 1.5}}, "training.top_p must be at most 1, but it is 1.5"),
        ({"training": {"generation_batch_size": 0}}, "training.generation_batch_size must be at least 1, but it is 0"),
        ({"training": {"seed": 2**64}}, "training.seed must be at most 4294967295"),
        ({"training": {"learning_rate": 0}}, "must be above 0"),
        ({"training": {"bf16": True, "fp16": True}}, "training"),
        ({"training": 3}, "expected settings by name under training, got 3"),
        ({"training": {"push_to_hub": True}}, "needs training.hub_model_id"),
        ({"training": {"eval_steps": 5}, "holdout": 0}, "there is nothing to evaluate"),
        ({"student": "./student"}, "expected settings by name under student"),
        ({"student": {}}, "the setting student.model is missing: it is a text"),
        ({"teachers": []}, "teachers must name at least one"),
        ({"texts": 3}, "texts must be a list, each a text"),
        ({"lr": 1}, "no setting is called 'lr': it is training.learning_rate"),
        ({"bf16": True}, "no setting is called 'bf16': it is training.bf16"),
        ({"temperature": 2}, "no setting is called 'temperature': it is loss.temperature"),
        ({"dataset": "a.txt"}, "dataset is called texts"),
        ({"training": {"holdout": 2}}, "no setting is called 'training.holdout': it is holdout"),
        ({"training": {"data": "a.txt"}}, "no setting is called 'training.data': it is texts"),
        ({"teachers": [{"model_name_or_path": "m"}]}, "teachers[0].model_name_or_path is called model"),
        ({"loss": {"alpha": 2}}, "loss.alpha is called kd_weight"),
        ({"collate": {"loss_roles": "assistant"}}, "collate: loss_roles is a list of names"),
        ({"collate": {"loss_on": ["answer"]}}, "collate: loss_on names thought, content, calls, end, got 'answer'"),
        ({"collate": {"max_student_tokens": 4}}, "no setting is called 'collate.max_student_tokens'"),
        ({"teachers": [{"model": "m", "cache": "c"}]}, "either a model or a cache or a url"),
        ({"teachers": [{"model": "m", "url": "http://x"}]}, "either a model or a cache or a url"),
        ({"teachers": [{"url": "http://x"}]}, "served at http://x and needs its tokenizer"),
        ({"teachers": [{"model": "m", "served": {"top_k": 4}}]}, "there is no url beside it"),
        ({"teachers": [{"url": "x", "tokenizer": "qwen3"}]}, "url is a server's address"),
        (
            {"teachers": [{"url": "http://x", "tokenizer": "qwen3", "served": {"topk": 4}}]},
            "teachers[0].served: a served teacher has no option topk",
        ),
        ({"teachers": [{"cache": "c"}]}, "needs its tokenizer"),
        ({"loss": {"kind": "zkl"}}, "loss: kind must be one of"),
        ({"loss": {"divergence": "jsd", "beta": 2.0}}, "loss: beta must lie between 0 and 1"),
        ({"loss": {"temperature": float("nan")}}, "loss.temperature must be a finite number"),
        (
            {"teachers": [{"cache": "c", "tokenizer": "t"}], "training": {"lmbda": 0.5}},
            "set training.lmbda to 0",
        ),
        ({"combine": {"weigh_by": "entropy"}}, "combine says how several teachers are weighed, but there is 1"),
        ({"combine": {"weighby": "entropy"}}, "did you mean 'combine.weigh_by'?"),
        ({"lora": 4}, "lora must be"),
        ({"lora": {"rank": 4}}, "lora.rank is called r"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_place(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError) as refusal:
        read(tmp_path, **changes)
    assert said in str(refusal.value)
    assert str(tmp_path / "run.yaml") in str(refusal.value)


def test_all_mistakes_are_told_at_once_each_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "student: {model: ./student, dtype: float64}\n"
        "teachers:\n"
        "  - {model: a}\n"
        "  - {cache: c, weight: -1, loss: {temprature: 2}}\n"
        "texts: corpus.jsonl\n"
        "output: run\n"
        "training:\n"
        "  steps: 10\n"
        "  learning_rate: .nan\n"
        "  seed: 99999999999999999999\n"
        "  bf16: 1\n"
        "  bf16: true\n"
    )
    with pytest.raises(OptionError) as refusal:
        read_config(path)
    first, *lines = str(refusal.value).split("\n")
    assert first == f"{path} has 8 mistakes:"
    places = [line.strip().removeprefix(f"{path}:").split(" ")[:2] for line in lines]
    assert (
        places
        == [
            ["1:", "student.dtype"],
            ["4:", "teachers[1]"],
            ["4:", "teachers[1].weight"],
            ["4:", "no"],
            ["8:", "training.steps"],
            ["9:", "training.learning_rate"],
            ["10:", "training.seed"],
            ["12:", "training.bf16"],
        ]
        or len(places) == 9
    )


def test_a_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(LEAST) + "output: other\n")
    with pytest.raises(OptionError, match=r":8: output stands here and in line 1: remove one of the two"):
        read_config(path)
    path.write_text("student: {model: a, model: b}\nteachers: {model: c}\ntexts: [a.txt]\noutput: run\n")
    with pytest.raises(OptionError, match=r":1: student.model stands here and in line 1: remove one of the two"):
        read_config(path)


def test_anchors_and_merged_mappings_are_read_as_yaml_means_them(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "student: &base {model: ./student, dtype: bfloat16}\n"
        "teachers: [{<<: *base, model: ./teacher}]\n"
        "texts: [a.txt]\noutput: run\n"
    )
    config = read_config(path)
    assert config.student == StudentConfig(model="./student", dtype="bfloat16")
    assert config.teachers == (TeacherConfig(model="./teacher", dtype="bfloat16"),)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"there is no file .*nothing.yaml: `xtoken-align init` prints one"):
        read_config(tmp_path / "nothing.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1\nb: 2")
    with pytest.raises(OptionError, match=r"is no YAML:\n(.*\n)*.*line 2, column 2"):
        read_config(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(OptionError, match="expected settings by name in the file"):
        read_config(tmp_path / "list.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(OptionError, match="cannot read"):
        read_config(tmp_path / "latin.yaml")


BOMB = "[&a [x,x,x,x,x,x,x,x,x], " + ", ".join(
    f"&{after} [{','.join([f'*{before}'] * 9)}]" for before, after in zip("abcdefghi", "bcdefghij", strict=True)
) + "]"  # fmt: skip


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"holdout: {BOMB}", "more than 10,000 values"),
        (f"student: {{<<: {BOMB}, model: a}}", "more than 10,000 values"),
        ("holdout: &a [*a]", "a value contains itself"),
        ("loss: " + "[" * 3000, "is no YAML"),
        (
            "holdout: 2001-99-99",
            r"run.yaml:\d+: holdout is 2001-99-99, which looks like a date or a number and is none \(month",
        ),
        ("holdout: " + "9" * 5000, r"run.yaml:\d+: holdout is 9{30}, which looks like .* \(Exceeds the limit"),
        ('output: "a\\0b"', r"output must be a text without NUL"),
        ("output: ~nobody-of-this-name/x", "output names the home of a user who is not known here"),
        ("holdout: [[[[[[[[1, 2], 3], 4], 5], 6], 7], 8], 9]", "holdout must be a whole number"),
    ],
)
def test_a_file_made_to_exhaust_its_reader_is_one_sentence(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "run.yaml"
    least = {key: value for key, value in LEAST.items() if not line.startswith(f"{key}:")}
    path.write_text(yaml.safe_dump(least) + line + "\n")
    with pytest.raises(OptionError, match=said) as caught:
        read_config(path)
    assert len(str(caught.value)) < 1000


def test_a_configuration_survives_being_written_down() -> None:
    config = from_values(
        DistillConfig,
        {
            **LEAST,
            "lora": {"r": 2},
            "loss": {"kind": "c-kl", "level_weight": "teacher", "end": False},
            "training": {"adam_beta2": 0.95},
        },
    )
    assert config.to_dict()["training"]["adam_beta2"] == 0.95
    assert from_values(DistillConfig, config.to_dict()) == config


def test_options_of_the_trainer_are_refused_together(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"2 mistakes:\n  learning_rate must be .*\n  lmbda must be"):
        XTokenConfig(output_dir=str(tmp_path), learning_rate=float("nan"), lmbda=2)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.sampled_from(["max_steps", "learning_rate", "seed", "bf16", "optim", "report_to", "lora", "steps"]),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=5)
        | st.lists(st.integers(), max_size=2),
        max_size=4,
    )
)
def test_whatever_stands_under_training_is_taken_or_refused(values: dict[str, Any]) -> None:
    try:
        config = from_values(DistillConfig, {**LEAST, "training": values})
    except OptionError:
        return
    assert config.training.max_steps == values.get("max_steps", -1)
    assert "steps" not in values
