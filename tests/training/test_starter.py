"""The configuration to begin with, and a teacher's cache from a configuration."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from training_world import World, texts

from xtoken_align.errors import OptionError
from xtoken_align.losses import LossOptions
from xtoken_align.training import DistillConfig, XTokenConfig, cache_teacher, distill, read_config
from xtoken_align.training.config import COLLATE
from xtoken_align.training.config_file import from_values, starter

pytest.importorskip("datasets")


def test_every_setting_stands_in_it_with_its_default_and_a_comment(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(starter("me/teacher: 4B", "./a student", ["a.txt", "b/*.txt"]))
    config = read_config(path)
    least = {"student": {"model": "./a student"}, "teachers": {"model": "me/teacher: 4B"}, "output": "./run"}
    expected = from_values(DistillConfig, {**least, "texts": ["a.txt", "b/*.txt"]}).to_dict()
    written = config.to_dict()
    assert written.pop("loss") == asdict(LossOptions("auto"))
    assert written.pop("collate").keys() == set(COLLATE)
    assert written == {name: value for name, value in expected.items() if name not in ("loss", "collate")}
    named = yaml.safe_load(path.read_text())
    own = vars(XTokenConfig)["__annotations__"].keys() - {"remove_unused_columns"}
    assert own <= named["training"].keys()
    assert named.keys() == DistillConfig.__dataclass_fields__.keys()
    lines = path.read_text().splitlines()
    for before, line in pairwise(lines):
        if line.strip() and not line.lstrip().startswith("#"):
            assert before.lstrip().startswith("#") or before.endswith(":"), line
    assert max(map(len, lines)) <= 100


def test_its_adapters_need_no_more_than_their_comment_marks_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    written = starter("teacher", "student", ["a.txt"])
    before, after = written.split("lora: null\n")
    adapters, blank, rest = after.partition("\n\n")
    path.write_text(before + re.sub(r"(?m)^# ", "", adapters) + blank + rest)
    lora = read_config(path).lora
    assert lora is not None
    assert (lora.r, lora.lora_alpha) == (16, 32)


@pytest.fixture
def config(world: World, tmp_path: Path) -> Any:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in texts(30)))

    def make(output: str = "run", **changes: Any) -> DistillConfig:
        training = {"max_steps": 3, "per_device_train_batch_size": 4, "max_teacher_tokens": 24, "use_cpu": True}
        values = {
            "student": {"model": str(world.student)},
            "teachers": {"model": str(world.teacher)},
            "texts": str(corpus),
            "output": str(tmp_path / output),
            "holdout": 3,
            "training": training,
            "loss": {"kind": "partition-kl"},
            **changes,
        }
        return from_values(DistillConfig, values)

    return make


def test_a_run_learns_from_chats_in_the_cache_that_its_configuration_writes(
    config: Any, world: World, tmp_path: Path
) -> None:
    pytest.importorskip("pyarrow")
    pytest.importorskip("jinja2")
    (tmp_path / "chat.jinja").write_text("{% for m in messages %}<s>{{ m.role }}:{{ m.content }}</s>{% endfor %}")
    template = {"chat_template": str(tmp_path / "chat.jinja")}
    answers = [[{"role": "assistant", "content": row["text"]}] for row in texts(20)]
    chats = [json.dumps({"messages": [{"role": "user", "content": "the sum"}, *answer]}) + "\n" for answer in answers]
    (tmp_path / "chats.jsonl").write_text("".join(chats))
    changes: dict[str, Any] = {
        "texts": str(tmp_path / "chats.jsonl"),
        "student": {"model": str(world.student), **template},
        "teachers": {"model": str(world.teacher), **template},
    }
    told: list[tuple[int, int]] = []
    report = cache_teacher(config(**changes), top_k=999, progress=lambda *rows: told.append(rows))
    assert (report.folder, report.rows, told[-1]) == (tmp_path / "run" / "cache", 20, (20, 20))
    live = distill(config("live", **changes), store=world.store)
    teachers = {"cache": str(report.folder), "tokenizer": str(world.teacher), **template}
    kept = distill(config(**{**changes, "teachers": teachers}), store=world.store)
    # The cache keeps logarithms as float16.
    assert kept.after["kd"] == pytest.approx(live.after["kd"], rel=0.01)


def test_a_cache_of_texts_is_written_once(config: Any) -> None:
    pytest.importorskip("pyarrow")
    report, again = cache_teacher(config(), top_k=9), cache_teacher(config(), top_k=9)
    assert report.rows == 30
    assert (report.kept, again.written, again.kept) == (0, 0, report.written)


def test_a_run_learns_any_loss_from_hidden_states(config: Any, world: World, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    loss, said = {"kind": "alm"}, []
    report = cache_teacher(config(loss=loss), keep="hidden", dtype="float32", space=said.append)
    assert "bytes before compression" in said[0]
    assert report.head_bytes > 0
    live = distill(config("live", loss=loss), store=world.store)
    teachers = {"cache": str(report.folder), "tokenizer": str(world.teacher)}
    kept = distill(config("kept", loss=loss, teachers=teachers), store=world.store)
    assert kept.after["kd"] == pytest.approx(live.after["kd"], abs=1e-5)
    # A run that was cut off goes on from the cache as from the teacher.
    short = {**config().training.settings(), "max_steps": 1}
    changes: dict[str, Any] = {"loss": loss, "teachers": teachers}
    distill(config("cut", **changes, training=short), store=world.store)
    on = distill(config("cut", **changes), store=world.store)
    assert on.resumed == 1
    assert on.after["kd"] == pytest.approx(live.after["kd"], abs=1e-5)


def test_what_no_cache_serves_is_refused(config: Any, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="alm needs the teacher's whole distribution"):
        cache_teacher(config(loss={"kind": "alm"}))
    with pytest.raises(OptionError, match="no teacher has the number 1: they run from 0 to 0"):
        cache_teacher(config(), teacher=1)
    (tmp_path / "cache").mkdir()
    with pytest.raises(OptionError, match=r"teachers\[0\] is the cache .* already"):
        cache_teacher(config(teachers={"cache": str(tmp_path / "cache"), "tokenizer": "x"}))
