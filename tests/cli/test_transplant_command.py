"""`transplant` from the command line: what it prints at two widths, as JSON and quietly, and how it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from command_results import Result, refused

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

Invoke = Callable[..., Result]


@pytest.fixture(scope="session")
def splitting_model(tokenizers: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer splits numerals."""
    folder = tmp_path_factory.mktemp("splitting") / "splitting"
    shutil.copytree(tokenizers[0], folder)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = transformers.LlamaConfig(vocab_size=292, bos_token_id=0, eos_token_id=1, **sizes)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("columns", [60, 100])
def test_it_prints_how_rows_were_made_and_what_to_do_next(
    invoke: Invoke, splitting_model: Path, tokenizers: tuple[str, str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, columns: int,
) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.chdir(tmp_path)
    done = invoke("transplant", splitting_model, tokenizers[1], "--out", "moved")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == "Model splitting has the tokenizer pupil now."
    assert lines[1].startswith("300 rows of 8 numbers, embedding and head apart, mapping ")
    table = lines[3 : lines.index("", 3)]
    assert table[0].split() == ["rows", "count", "%", "made", "from"]
    counts = {line.split()[0]: int(line.split()[1]) for line in table[1:] if line[:1].isalpha()}
    assert sum(counts.values()) == 300
    assert all(len(line) <= columns for line in table)
    assert any(line.startswith("split ") and "the mean of the rows of its pieces" in line for line in table)
    assert "Ids: bos 0, eos 1, pad none, stops 1" in lines
    assert "Written to moved" in lines
    assert "  student: {model: moved}" in lines
    assert f"  teachers: [{{model: {splitting_model}}}]" in lines
    assert transformers.AutoModelForCausalLM.from_pretrained("moved").config.vocab_size == 300


def test_as_json_and_quietly(
    invoke: Invoke, splitting_model: Path, tokenizers: tuple[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "moved"
    found = json.loads(invoke("transplant", splitting_model, tokenizers[1], "-o", out, "--json").out)
    assert (found["path"], found["tokenizer"], found["shape"]) == (str(out), "pupil", [300, 8])
    assert sum(found["rows"].values()) == 300
    again = invoke("transplant", splitting_model, tokenizers[1], "-o", out, "-q", "--force")
    assert (again.code, again.out, again.err) == (0, f"{out}\n", "")


def test_a_mapping_may_be_given_and_must_be_of_these_two(
    invoke: Invoke, splitting_model: Path, tokenizers: tuple[str, str], built: Path, tmp_path: Path
) -> None:
    call = ("transplant", splitting_model, tokenizers[1], "-o", tmp_path / "moved", "--json", "--mapping")
    assert json.loads(invoke(*call, built).out)["rows"]["split"] > 0
    shutil.rmtree(tmp_path / "moved")
    other = tmp_path / "other.npz"
    assert invoke("build", tokenizers[1], tokenizers[0], "-o", other, "-q").code == 0
    assert refused(invoke(*call, other)).startswith("the mapping's student is master, and pupil is not it")
    assert "is for 300 logits, not for 310" in refused(invoke(*call, built, "--logits", "310"))
    assert not (tmp_path / "moved").exists()


def test_more_rows_than_the_tokenizer_has_ids(
    invoke: Invoke, splitting_model: Path, tokenizers: tuple[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "moved"
    found = json.loads(invoke("transplant", splitting_model, tokenizers[1], "-o", out, "--json", "--logits", "320").out)
    assert (found["shape"], found["rows"]["mean"]) == ([320, 8], 20)


def test_it_refuses_in_a_sentence_and_leaves_nothing(
    invoke: Invoke, splitting_model: Path, tokenizers: tuple[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    missing = invoke("transplant", tmp_path / "nothing", tokenizers[1], "-o", out)
    assert refused(missing).startswith("no such file or directory")
    weightless = invoke("transplant", tokenizers[0], tokenizers[1], "-o", out)
    assert refused(weightless).startswith(f"cannot load the model {tokenizers[0]} (")
    own = invoke("transplant", splitting_model, tokenizers[1], "-o", splitting_model, "--force")
    assert "is the folder of the model itself" in refused(own)
    assert not out.exists()
    (out / "important").mkdir(parents=True)
    assert "is not empty" in refused(invoke("transplant", splitting_model, tokenizers[1], "-o", out))
    forced = invoke("transplant", splitting_model, tokenizers[1], "-o", out, "--force")
    assert "nothing but a model's files" in refused(forced)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert invoke("transplant", splitting_model, tokenizers[1]).code == 2


def test_mistakes_are_told_before_a_model_is_loaded(
    execute: Invoke, tokenizers: tuple[str, str], tmp_path: Path
) -> None:
    report = "import atexit, sys\natexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))"
    (tmp_path / "kept").write_text("")
    done = execute("transplant", tokenizers[0], tokenizers[1], "-o", tmp_path, before=report)
    assert "is not empty" in done.err
    assert done.err.endswith("False\n")
