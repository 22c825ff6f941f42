"""The notebooks run, draw, fetch nothing, show what their texts say, and are kept with the outputs of such a run."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest

from xtoken_align.errors import SourceError
from xtoken_align.sources.locate import package_file
from xtoken_align.sources.presets import presets

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
# Imported here, so that the fonts are listed before a kernel would say on stderr that it lists them.
pytest.importorskip("matplotlib.font_manager")

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

# Refuses every address that a notebook asks for, and notes it, since a library may go on where it is refused.
GUARD = """
import sys

asked = []


def _refuse(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        wanted = arguments[0]
    elif event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        wanted = arguments[1]
    else:
        return
    asked.append(wanted)
    raise OSError(f"a notebook asked the network for {wanted}")


sys.addaudithook(_refuse)
"""
NOTHING_ASKED = "assert not asked, asked"

CLAIMS = {
    "01_first_mapping": """
assert Counter(numerals["Llama-3 from Qwen3"]) == {"exact": 10, "split": 990}
assert Counter(numerals["Llama-3 from DeepSeek"]) == {"exact": 1000}
assert Counter(numerals["Qwen3 from Llama-3"]) == {"exact": 10, "absent": 990}
assert single.mean() > 0.5
assert sorts.one_to_one and sorts.one_to_many and sorts.many_to_one and not sorts.many_to_many
assert "deepseek is not it" in refusal
""",
    "02_tokenizer_upgrade": """
assert [relations[pair].same_text for pair in UPGRADES] == [False, False, True, True]
assert count == len(before_v3) - 3
assert not differences["mistral-tekken-240718", "mistral-tekken-240911"].differs
shift = differences["mistral-v1", "mistral-v3"].rows
assert shift.same and not (shift.rule or shift.weights or shift.added or shift.removed)
assert differences["qwen3", "qwen3.6"].rows.rule
assert all(changed[name][0] < changed[name][1] for name in ("greek", "arabic", "hangul", "cyrillic", "thai"))
assert changed["ascii_punct"][0] > changed["ascii_punct"][1]
assert list(refusals) == ["qwen3.6", "mistral-v3"]
assert "the same text but differ" in str(caught[0].message)
""",
    "03_distilling": """
assert difference < 1e-6
assert float(1 - common_mass[chunks_at].mean()) < 0.05 < 0.5 < float((1 - common_mass).max())
assert pushes["GOLD, none"] < -0.5 and pushes["GOLD, rest"] < -0.5
assert abs(pushes["P-KL"]) < 0.1 and abs(pushes["C-KL"]) < 0.1
start_mass = results["P-KL", False][0][0]
for name in ("GOLD, none", "GOLD, rest"):
    assert results[name, False][0][-1] < 0.1 < 0.8 < start_mass
    assert results[name, False][0][-1] < results[name, True][0][-1] < start_mass - 0.1
for name, with_text in ((name, with_text) for name in ("P-KL", "C-KL") for with_text in (False, True)):
    assert results[name, with_text][0][-1] > start_mass - 0.1
    assert results[name, True][1] < results["GOLD, none", True][1]
""",
    "04_real_model": """
assert 0.5 < ceiling < floor - 0.3
for curve in curves.values():
    assert all(ceiling < bits < floor for bits in curve[1:])
    assert curve[-1] < floor - 0.4 * (floor - ceiling)
assert moved.rows["exact"] > 39_000 and moved.rows["split"] > 84_000
""",
}


@pytest.fixture(autouse=True)
def _kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Kernels leave nothing in the user's folders, draw into the notebook, use one core and do not ask the Hub."""
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.delenv("MPLBACKEND", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # tqdm asks every notebook for widgets; transformers imports it.
    monkeypatch.setenv("PYTHONWARNINGS", "ignore:IProgress not found")


def code_of(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def run(notebook: Any, folder: Path) -> list[Any]:
    """Runs a notebook's cells under the guard; returns the outputs."""
    for number, source in ((0, GUARD), (len(notebook.cells) + 1, NOTHING_ASKED)):
        notebook.cells.insert(number, nbformat.v4.new_code_cell(source))
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    return [output for cell in code_of(notebook) for output in cell.outputs]


def printed(outputs: Iterable[Any]) -> str:
    return "".join(output.text for output in outputs if output.get("name") == "stdout")


def skip_without_its_packages(source: str) -> None:
    for package in re.findall(r'distribution\("([\w-]+)"\)', source):
        if not any(distributions(name=package)):
            pytest.skip(f"{package}, of the extra models, is not installed")
    for module in sorted(set(re.findall(r"^(?:import|from) (\w+)", source, flags=re.MULTILINE))):
        pytest.importorskip(module)
    for alias in presets():
        if f'"{alias}"' in source:
            try:
                package_file(presets()[alias].locations[0])
            except SourceError as error:
                pytest.skip(str(error))


def test_there_are_notebooks_and_each_has_its_claims() -> None:
    assert [path.stem for path in NOTEBOOKS] == list(CLAIMS)


@every_notebook
def test_a_notebook_is_kept_with_the_outputs_of_one_run_and_nothing_of_the_machine(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec"}
    assert notebook.metadata.kernelspec.name == "python3"
    assert all(not cell.metadata for cell in notebook.cells)
    cells = code_of(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/(?:tmp|home|root|work|Users)/|site-packages", text)
    assert len(text) < 400_000


@every_notebook
def test_a_notebook_imports_from_the_public_places_only(path: Path) -> None:
    source = "\n".join(cell.source for cell in code_of(nbformat.read(path, as_version=4)))
    places = set(re.findall(r"^(?:import|from) (xtoken_align[.\w]*)", source, flags=re.MULTILINE))
    assert places <= {"xtoken_align", "xtoken_align.losses", "xtoken_align.training"}


@pytest.mark.timeout(900)  # the real model's takes four minutes on a free core
@every_notebook
def test_a_notebook_runs_draws_warns_of_nothing_and_shows_what_it_says(path: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    skip_without_its_packages("\n".join(cell.source for cell in code_of(notebook)))
    kept = printed(output for cell in code_of(notebook) for output in cell.outputs)
    notebook.cells.append(nbformat.v4.new_code_cell(CLAIMS[path.stem]))
    outputs = run(notebook, tmp_path)
    if "torch" not in "".join(cell.source for cell in code_of(notebook)):  # whose numbers are the machine's
        assert printed(outputs) == kept, "python scripts/run_notebooks.py writes the outputs anew"
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert pictures
    assert all(len(picture.data["image/png"]) > 5_000 for picture in pictures)


def test_a_notebook_that_asks_the_network_is_found_out(tmp_path: Path) -> None:
    quiet = """
import socket

try:
    socket.create_connection(("192.0.2.1", 80), timeout=1)
except OSError:
    pass
"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(quiet)])
    with pytest.raises(nbclient.exceptions.CellExecutionError, match=r"192\.0\.2\.1"):
        run(notebook, tmp_path)
