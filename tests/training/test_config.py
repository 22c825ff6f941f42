"""The configuration of `distill`: what is read, and how what makes no sense is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from xtoken_align.errors import OptionError
from xtoken_align.training.config import DistillConfig, LoraConfig, TeacherConfig, read_config
from xtoken_align.training.config_values import from_values

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
    made = read(tmp_path)
    assert made.teachers == (TeacherConfig(model="./teacher"),)
    assert made.training.batch_size == 8
    assert made.characters == 3 * 512
    assert made.lora is None


def test_everything_can_be_said(tmp_path: Path) -> None:
    made = read(
        tmp_path,
        teachers=[{"cache": "c", "tokenizer": "qwen3", "weight": 1, "loss": {"kind": "p-kl"}}, {"model": "m"}],
        lora={"rank": 4, "targets": ["q_proj"]},
        training={"steps": None, "schedule": "linear", "learning_rate": 1.0e-3},
        loss={"temperature": 2.0},
        longest_text=100,
    )
    assert made.teachers[0].weight == 1.0
    assert made.lora == LoraConfig(rank=4, targets=("q_proj",))
    assert made.training.learning_rate == 1e-3
    assert made.characters == 100


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"techers": []}, "no setting is called 'techers': did you mean 'teachers'?"),
        ({"training": {"learning-rate": 1.0}}, "'training.learning-rate': did you mean 'training.learning_rate'?"),
        ({"teachers": [{"modle": "x"}]}, "'teachers[0].modle': did you mean 'teachers[0].model'?"),
        ({"training": {"zzz": 1}}, "no setting is called 'training.zzz'. The settings are steps, epochs"),
        ({"training": {"batch_size": "8"}}, "training.batch_size must be a whole number, but it is '8'"),
        ({"training": {"batch_size": True}}, "training.batch_size must be a whole number, but it is True"),
        ({"training": {"learning_rate": "1e-4"}}, "write 1.0e-4"),
        ({"training": {"batch_size": 0}}, "training.batch_size must be at least 1, but it is 0"),
        ({"training": {"schedule": "sometimes"}}, "must be linear or cosine or constant"),
        ({"training": {"lmbda": 2}}, "a probability, 0 to 1"),
        ({"training": {"learning_rate": 0}}, "must be above 0"),
        ({"training": 3}, "expected settings by name under training, got 3"),
        ({"student": "./student"}, "expected settings by name under student"),
        ({"student": {}}, "the setting student.model is missing: it is a text"),
        ({"teachers": []}, "teachers must name at least one"),
        ({"texts": "a.txt"}, "texts must be a list, each a text"),
        ({"teachers": [{"model": "m", "cache": "c"}]}, "either a model or a cache"),
        ({"teachers": [{"cache": "c"}]}, "needs its tokenizer"),
        (
            {"teachers": [{"cache": "c", "tokenizer": "t"}], "training": {"lmbda": 0.5}},
            "set training.lmbda to 0",
        ),
        ({"lora": 4}, "expected settings by name under lora"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_place(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError) as refusal:
        read(tmp_path, **changes)
    assert said in str(refusal.value)
    assert str(tmp_path / "run.yaml") in str(refusal.value)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"cannot read .*nothing.yaml: No such file"):
        read_config(tmp_path / "nothing.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(OptionError, match="is no YAML"):
        read_config(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(OptionError, match="expected settings by name in the file"):
        read_config(tmp_path / "list.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(OptionError, match="cannot read"):
        read_config(tmp_path / "latin.yaml")


def test_a_configuration_survives_being_written_down() -> None:
    made = from_values(DistillConfig, {**LEAST, "lora": {"rank": 2}, "loss": {"kind": "c-kl"}})
    assert from_values(DistillConfig, made.to_dict()) == made
