"""`export` and `import` from the command line: what they print at two widths, as JSON and quietly, and refusals."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import part
from command_results import Result, refused

from xtoken_align.mapping.formats import FORMATS

torch = pytest.importorskip("torch")

Invoke = Callable[..., Result]


def test_the_command_offers_the_formats_of_the_library() -> None:
    assert tuple(FORMATS) == part("export").FORMATS
    explained = part("export").command.help
    assert all(re.search(rf"^ +{name} ", explained, re.MULTILINE) for name in FORMATS)


@pytest.mark.parametrize("columns", [60, 100])
@pytest.mark.parametrize("name", FORMATS)
def test_export_says_what_the_file_holds(
    invoke: Invoke, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: int, name: str
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.chdir(tmp_path)
    done = invoke("export", built, "--format", name, "-o", "out")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0].startswith("Student pupil learns from teacher master, version ")
    assert lines[1] == f"{name}: {FORMATS[name].about}"
    assert lines[-1] == f"Written to out, {(tmp_path / 'out').stat().st_size / 1e3:.1f} kB"
    held = lines[3 : lines.index("", 3)]
    assert held
    assert all(line.startswith("  ") and len(line) <= columns for line in held)


def test_export_as_json_and_quietly(invoke: Invoke, built: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.pt"
    found = json.loads(invoke("export", built, "--format", "nemo-rl", "--top-k", "1", "-o", out, "--json").out)
    assert (found["schema"], found["path"], found["format"]) == (1, str(out), "nemo-rl")
    assert (found["bytes"], found["holds"]["indices"]) == (out.stat().st_size, "int64 (300, 2)")
    done = invoke("export", built, "--format", "torch", "--layout", "coo", "-o", out, "--force", "-q")
    assert (done.code, done.out, done.err) == (0, f"{out}\n", "")
    assert torch.load(out, weights_only=True).layout == torch.sparse_coo


def test_export_refuses_in_a_sentence(invoke: Invoke, built: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "layout is an option of the format torch" in refused(
        invoke("export", built, "--format", "json", "--layout", "coo", "-o", out)
    )
    # Before the mapping is read.
    assert "there is no folder" in refused(
        invoke("export", "nothing", "--format", "json", "-o", tmp_path / "none" / "x")
    )
    assert "no mapping is called" in refused(invoke("export", "nothing", "--format", "json", "-o", out))
    assert invoke("export", built, "-o", out).code == 2
    assert invoke("export", built, "--format", "nemo", "-o", out).code == 2
    assert not out.exists()
    out.write_text("mine")
    assert "give --force to replace it" in refused(invoke("export", built, "--format", "json", "-o", out))
    assert out.read_text() == "mine"


@pytest.fixture
def projection(invoke: Invoke, built: Path, tmp_path: Path) -> Path:
    """The mapping as NeMo-RL's file, with the scale trick in the last of three columns."""
    invoke("export", built, "--format", "nemo-rl", "-o", tmp_path / "projection.pt")
    table = torch.load(tmp_path / "projection.pt", weights_only=True)
    indices = torch.nn.functional.pad(table["indices"], (0, 1), value=7)
    likelihoods = torch.nn.functional.pad(table["likelihoods"], (0, 1), value=0.2)
    likelihoods /= likelihoods.sum(dim=1, keepdim=True)
    names = {"student_model_id": "org/\x1b[2Jpupil", "teacher_model_id": "org/master"}
    torch.save({"indices": indices, "likelihoods": likelihoods, **names}, tmp_path / "projection.pt")
    return tmp_path / "projection.pt"


@pytest.mark.parametrize("columns", [60, 100])
def test_import_says_what_is_odd_and_compares(
    invoke: Invoke, projection: Path, built: Path, tokenizers: tuple[str, str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, columns: int,
) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("XTOKEN_ALIGN_STORE", str(tmp_path / "store"))
    done = invoke("import", projection, *tokenizers)
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0] == "Student pupil learns from teacher master."
    assert lines[1].startswith("projection.pt is NeMo-RL's table of 300 x ")
    # What a stranger's file names does not steer the terminal.
    assert lines[1].endswith(r"; it names org/\u001b[2Jpupil and org/master.")
    odd = lines[lines.index("In the file:") + 1 :]
    assert any(line.startswith("- the scale trick gives 300 rows a link in the last column") for line in odd)
    assert odd[-2].startswith("Beside what build makes: rows the same 1, with other weights or links 0, by another")
    # Under a name of its own: what is asked for by the pair's name stays what was built.
    written = Path(lines[-1].removeprefix("Written to "))
    assert written.parent == tmp_path / "store" / "pupil--master-imported"

    shown = invoke("inspect", "pupil--master-imported")
    head = shown.out.splitlines()
    assert head[0].endswith(", imported.")
    assert head[2].startswith("Imported from projection.pt: NeMo-RL's table of 300 x ")
    assert any("the scale trick gives 300 rows" in line for line in head[3:7])
    report = json.loads(invoke("inspect", "pupil--master-imported", "--json").out)
    assert (report["provenance"], report["imported"][0][:19]) == ("imported", "from projection.pt:")
    assert json.loads(invoke("inspect", built, "--json").out)["imported"] is None

    compared = invoke("diff", built, "pupil--master-imported")
    assert "W was built before and is imported now." in compared.out
    assert "Option" not in compared.out


def test_import_leaves_the_trick_out_as_json_and_quietly(
    invoke: Invoke, projection: Path, built: Path, tokenizers: tuple[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out.npz"
    done = invoke("import", projection, *tokenizers, "--drop-scale-trick", "-o", out, "--json")
    report = json.loads(done.out)
    assert (report["path"], report["file"]["name"], report["file"]["teacher"]) == (
        str(out), "projection.pt", "org/master"
    )  # fmt: skip
    assert report["against"]["rows"]["rule"] == 0
    assert {finding["name"] for finding in report["findings"]} >= {"scale trick", "sentinel"}
    diff = json.loads(invoke("diff", built, out, "--json").out)
    assert (diff["rows"]["rule"], diff["l1"]) == (0, pytest.approx(0, abs=1e-4))
    assert invoke("import", projection, *tokenizers, "-o", out, "--force", "-q").out == f"{out}\n"


def test_import_refuses_in_a_sentence(
    invoke: Invoke, projection: Path, built: Path, tokenizers: tuple[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out.npz"
    assert "found NeMo-RL's projection matrix: `xtoken-align import` reads it" in refused(invoke("inspect", projection))
    assert "are student and teacher exchanged?" in refused(invoke("import", projection, *tokenizers[::-1], "-o", out))
    assert "a mapping file needs no import" in refused(invoke("import", built, *tokenizers, "-o", out))
    assert "cannot read" in refused(invoke("import", tmp_path / "none.pt", *tokenizers, "-o", out))
    assert "there is no folder" in refused(invoke("import", projection, *tokenizers, "-o", tmp_path / "no" / "out"))
    assert invoke("import", projection, *tokenizers, "-o", out, "--name", "x").code == 2
    assert invoke("import", projection, tokenizers[0]).code == 2
    assert not out.exists()
    out.write_text("mine")
    assert "give --force to replace it" in refused(invoke("import", projection, *tokenizers, "-o", out))
