"""`distill` from the command line: what it prints, how it refuses, and being interrupted."""

from __future__ import annotations

import gc
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_results import Result

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("datasets")

Invoke = Callable[..., Result]


@pytest.fixture(scope="session")
def pair(tokenizers: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a teacher and a student with random weights."""
    root, made = tmp_path_factory.mktemp("pair"), []
    for number, source in enumerate(tokenizers):
        folder = root / Path(source).name
        shutil.copytree(source, folder)
        width = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
        torch.manual_seed(number)
        sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
        config = transformers.LlamaConfig(vocab_size=width, bos_token_id=0, eos_token_id=1, **sizes)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
        made.append(folder)
    return made[0], made[1]


@pytest.fixture
def written(pair: tuple[Path, Path], tmp_path: Path) -> Callable[..., Path]:
    """Writes a configuration of a short run."""
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("the cat sat on the mat 12 120 201\n" * 30)

    def write(**changes: Any) -> Path:
        training = {
            "max_steps": 4,
            "per_device_train_batch_size": 2,
            "save_steps": 2,
            "logging_steps": 2,
            "use_cpu": True,
        }
        values = {
            "student": {"model": str(pair[1])},
            "teachers": [{"model": str(pair[0])}],
            "texts": [str(corpus)],
            "longest_text": 40,
            "output": str(tmp_path / "run"),
            "training": {**training, "max_student_tokens": 16, "max_teacher_tokens": 24},
            **changes,
        }
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_it_ends_with_a_table_and_the_students_folder(invoke: Invoke, written: Any, tmp_path: Path) -> None:
    done = invoke("distill", written())
    assert done.code == 0
    assert "step 4/4  loss " in done.err
    assert "step 3/4" not in done.err
    student = tmp_path / "run" / "student"
    lines = done.out.splitlines()
    assert lines[0].startswith("Student ")
    assert " learns from teacher " in lines[0]
    loss, ceiling = lines[2].split("; ")
    assert re.fullmatch(r"Held-out loss \d\.\d\d -> \d\.\d\d bits per byte \([+-][\d.]+%\)", loss)
    assert re.fullmatch(r"teacher \d\.\d\d(, \d+% of the way|, passed)?", ceiling)
    assert lines[4].split() == ["teacher", "loss", "mapping", "weight"]
    assert lines[6].split()[0] == "master"
    assert lines[-5] == "4 steps on 27 rows, measured on 3 held-out rows"
    assert re.fullmatch(r"[\d.]+ s, [\d,]+ tokens/s in training, peak memory \d+\.\d GB", lines[-4])
    assert lines[-3:] == [
        f"Written to {student}. To load it:",
        f'  AutoModelForCausalLM.from_pretrained("{student}")',
        f'  AutoTokenizer.from_pretrained("{student}")',
    ]
    assert not [line for line in lines if line.startswith("kd ")]
    again = invoke("distill", written(), "--verbose").out.splitlines()
    (kd,) = [line.split() for line in again if line.startswith("kd ")]
    assert len(kd) == 4


@pytest.mark.parametrize("columns", [60, 100])
def test_rows_are_shown_with_their_labels_marked(
    invoke: Invoke, written: Any, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = invoke("distill", written(), "--check", "--show", "2").out.splitlines()
    assert max(map(len, shown[1:])) <= columns
    assert re.fullmatch(r"Row 1: \d+ student tokens; \d+ are labels, marked with >", shown[2])
    assert shown[3].split() == ["added", "<s>"]
    assert shown[4].split()[:3] == [">", "text", "the"]
    as_json = json.loads(invoke("distill", written(), "--check", "--show", "1", "--json").out)
    assert [part["labelled"] for part in as_json["rows"][0]["parts"]] == [False, True, False]
    alone = invoke("distill", written(), "--show", "1")
    assert (alone.code, "give it with --check" in alone.err) == (2, True)


def test_as_json_and_quietly(invoke: Invoke, written: Any, tmp_path: Path) -> None:
    made = invoke("distill", written(), "--json", "--steps", "2", "-o", tmp_path / "other")
    found = json.loads(made.out)
    assert (found["steps"], found["student"]) == (2, str(tmp_path / "other" / "student"))
    assert found["before"].keys() == found["after"].keys()
    again = invoke("distill", written(), "-q", "--steps", "2", "--output", tmp_path / "other")
    assert (again.code, again.out, again.err) == (0, f"{tmp_path / 'other' / 'student'}\n", "")
    both = invoke("distill", written(), "-q", "--json", "--steps", "2", "--output", tmp_path / "other")
    assert {**json.loads(both.out), "seconds": 0} == {**found, "seconds": 0}
    assert both.err == ""


def test_an_interrupted_run_goes_on(
    invoke: Invoke, written: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xtoken_align.training import DistillationMixin

    own, calls = DistillationMixin.compute_loss, []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls.append(gc.isenabled())
        if len(calls) == 4:
            raise KeyboardInterrupt
        return own(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(DistillationMixin, "compute_loss", interrupted)
        stopped = invoke("distill", written())
    assert stopped.code == 130
    assert "Interrupted: the same command goes on from the last checkpoint" in stopped.err
    assert all(calls)
    assert not (tmp_path / "run" / "student").exists()
    done = invoke("distill", written())
    assert done.code == 0
    assert "resumed at step 2" in done.out
    assert "going on from step 2" in done.err


def test_a_configuration_is_checked_without_doing_anything(invoke: Invoke, written: Any, tmp_path: Path) -> None:
    path = written()
    done = invoke("distill", path, "--check")
    assert done.code == 0
    assert done.out.startswith(f"{path} is in order: student ")
    as_json = invoke("distill", path, "--check", "--json")
    assert json.loads(as_json.out) == {"config": str(path), "in_order": True}
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"loss": {"kind": "zkl"}}, "loss: kind must be one of"),
        ({"loss": {"temprature": 1}}, "'loss.temprature': did you mean 'loss.temperature'?"),
        ({"texts": ["nowhere.txt"]}, "there is no file nowhere.txt"),
        ({"student": {"model": "./nowhere"}}, "which student.model names"),
        ({"teachers": [{"model": "a", "weight": 1}, {"model": "b"}]}, "teachers[1].weight is missing"),
        ({"teachers": [{"model": "a", "weight": -1}]}, "teachers[0].weight must be a number from 0 on"),
        ({"teachers": [{"model": "a", "loss": {"top_k": 0}}]}, "teachers[0].loss: top_k"),
        ({"teachers": [{"cache": "nowhere", "tokenizer": "a"}]}, "which teachers[0].cache names"),
    ],
)
def test_a_check_sees_what_needs_no_model(invoke: Invoke, written: Any, changes: dict[str, Any], said: str) -> None:
    done = invoke("distill", written(**changes), "--check")
    assert (done.code, done.out) == (1, "")
    assert said in done.err


def test_an_empty_file_is_said_to_be_empty(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert "is empty: it needs student, teachers" in invoke("distill", tmp_path / "empty.yaml", "--check").err


def test_a_run_that_has_ended_says_so(invoke: Invoke, written: Any) -> None:
    assert invoke("distill", written()).code == 0
    assert "this run has ended before" in invoke("distill", written()).err


def test_what_makes_no_sense_is_one_sentence_and_code_1(invoke: Invoke, written: Any) -> None:
    done = invoke("distill", written(techers=[]))
    assert done.code == 1
    assert "did you mean 'teachers'?" in done.err
    assert done.err.count("\n") == 1
    assert invoke("distill", "nowhere.yaml").code == 1
    assert invoke("distill").code == 2


def test_its_help_loads_nothing_heavy(execute: Invoke) -> None:
    report = "import atexit, sys\natexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))"
    shown = execute("distill", "--help", before=report)
    assert (shown.code, shown.err) == (0, "False\n")


def test_all_mistakes_of_a_file_are_listed(invoke: Invoke, written: Any) -> None:
    path = written(techers=[], holdout=-1, training={"steps": 3})
    lines = invoke("distill", path, "--check").err.splitlines()
    assert lines[0] == f"Error: {path} has 3 mistakes:"
    assert [line.split(": ")[0].rpartition(":")[0] for line in lines[1:]] == [f"  {path}"] * 3


def test_init_prints_a_configuration_that_distill_takes(
    invoke: Invoke, pair: Any, written: Any, tmp_path: Path
) -> None:
    written()
    made = invoke("init", pair[0], pair[1], tmp_path / "corpus.txt", "-o", tmp_path / "run")
    assert made.code == 0
    assert made.err.splitlines()[-1] == "  xtoken-align distill run.yaml"
    path = tmp_path / "new.yaml"
    path.write_text(made.out)
    assert invoke("distill", path, "--check").out.startswith(f"{path} is in order: student {pair[1]} ")
    missing = invoke("init", "qwen3", "./nowhere", "gone.txt")
    assert missing.code == 0
    assert [line.split(":")[1] for line in missing.err.splitlines() if line.startswith("Note")] == [
        " there is no file gone.txt",
        " there is no folder ./nowhere, which student.model names",
        " qwen3 is a tokenizer's name, and teachers[0].model a model",
    ]


def test_a_cache_is_written_and_named_as_a_configuration_names_it(
    invoke: Invoke, written: Any, pair: Any, tmp_path: Path
) -> None:
    pytest.importorskip("pyarrow")
    path = written()
    done = invoke("cache", path, "--top-k", "8")
    folder = tmp_path / "run" / "cache"
    assert done.code == 0
    assert "30 of 30 rows" in done.err
    assert done.out.splitlines()[-1] == f"  {{cache: {folder}, tokenizer: {pair[0]}}}"
    as_json = json.loads(invoke("cache", path, "--top-k", "8", "--json").out)
    assert (as_json["rows"], as_json["written"], as_json["folder"]) == (30, 0, str(folder))
    assert invoke("cache", path, "--top-k", "8", "-q").out == f"{folder}\n"
    learnt = written(teachers={"cache": str(folder), "tokenizer": str(pair[0])}, loss={"kind": "C_KL"})
    assert invoke("distill", learnt, "-q").code == 0
    hidden = written(loss={"kind": "alm"})
    done = invoke("cache", hidden, "--keep", "hidden", "-o", tmp_path / "states")
    assert (done.code, ", and the output head 0.0 MB" in done.out) == (0, True)
    assert "bytes before compression" in done.err
    teachers = {"cache": str(tmp_path / "states"), "tokenizer": str(pair[0])}
    learnt = written(teachers=teachers, loss={"kind": "alm"}, output=str(tmp_path / "other"))
    assert invoke("distill", learnt, "-q").code == 0
    refused = invoke("cache", written(loss={"kind": "alm"}), "--top-k", "8")
    assert (refused.code, "alm needs the teacher's whole distribution: keep hidden states" in refused.err) == (1, True)
    refused = invoke("cache", written(), "--teacher", "3")
    assert (refused.code, "no teacher has the number 3" in refused.err) == (1, True)
