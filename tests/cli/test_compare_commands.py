"""`diff`, `compat`, `list`, `gc`, `verify` over the store and shell completion, as a user runs them."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from xtoken_align.mapping.mapping import load_mapping


def rank_file(path: Path, tokens: list[bytes]) -> Path:
    singles = [bytes([byte]) for byte in range(256)]
    lines = [base64.b64encode(token) + b" %d" % rank for rank, token in enumerate(singles + tokens)]
    path.write_bytes(b"\n".join(lines))
    return path


@pytest.fixture(scope="module")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a student, two teachers and a store that has a mapping from each."""
    folder = tmp_path_factory.mktemp("place")
    rank_file(folder / "student.tiktoken", [b"th", b"the", b"12"])
    rank_file(folder / "old.tiktoken", [b"th", b"the"])
    rank_file(folder / "new.tiktoken", [b"12", b"th"])
    for teacher in ("old", "new"):
        assert run(folder, "build", f"{teacher}.tiktoken", "student.tiktoken", "-q").returncode == 0
    return folder


@pytest.fixture
def place(built_once: Path, tmp_path: Path) -> Path:
    """A copy of that folder, for a test to change."""
    return Path(shutil.copytree(built_once, tmp_path / "place"))


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from importlib import import_module as i; i('xtoken_align' + '.cli.main').main()",
         *arguments],
        cwd=folder, env={**os.environ, "XTOKEN_ALIGN_STORE": str(folder / "store"), **environment},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_diff_leads_with_what_a_training_run_would_notice(place: Path) -> None:
    done = run(place, "diff", "student--old", "student--new")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0].startswith("Before: Student student learns from teacher old, version ")
    assert lines[3] == "Paper's rule: p-kl before, h-kl now."
    assert lines[4] == "Numerals digits_2: 0 of 1 exact before, 1 of 1 now."
    assert lines[5].startswith("Rows: 2 by another rule, 0 with other weights, 0 new, 0 gone, 257 the same;")
    assert "'the'  exact -> decompose, L1 2.000: 'the' -> 'th'+'e'" in done.stdout


def test_diff_of_a_mapping_with_itself_is_one_line_and_exit_0(place: Path) -> None:
    done = run(place, "diff", "student--old", "student--old", "--exit-code")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1


def test_diff_exits_with_1_only_where_it_is_asked_to(place: Path) -> None:
    assert run(place, "diff", "student--old", "student--new").returncode == 0
    assert run(place, "diff", "student--old", "student--new", "--exit-code").returncode == 1


def test_diff_as_json_has_the_documented_keys(place: Path) -> None:
    report = json.loads(run(place, "diff", "student--old", "student--new", "--json", "--limit", "1").stdout)
    for side in ("student", "teacher"):
        assert report[side].keys() == {"added", "removed", "moved", "repurposed", "renamed"}
    assert report["rows"] == {"same": 257, "rule": 2, "weights": 0, "added": 0, "removed": 0}
    assert report["classes"]["digits_2"]["after"]["exact"] == 1
    assert len(report["changes"]["rows"]["rule"]) == 1


def test_compat_says_the_relation_first(place: Path) -> None:
    done = run(place, "compat", "old.tiktoken", "new.tiktoken")
    assert done.stdout.startswith("old and new: repurposed\n")
    assert json.loads(run(place, "compat", "old.tiktoken", "new.tiktoken", "--json").stdout)["moved"] == 1


GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def test_compat_gives_the_verdict_in_the_first_line_and_every_part_below(place: Path) -> None:
    arguments = ("compat", "old.tiktoken", "old.tiktoken", "--b-pattern", GPT2.replace(r"\p{L}+", r"\p{L}", 1))
    lines = run(place, *arguments).stdout.splitlines()
    assert lines[0].startswith("old and old: same ids, other encoding: ")
    assert " lines differ, e.g. " in lines[0]
    assert lines[2].startswith("A mapping made for one is wrong for the other;")
    parts = {line[:30].strip(): line[30:].strip() for line in lines[4:]}
    assert parts["text tokens"] == "equal"
    assert parts["normaliser"] == "equal"


def test_two_equal_tokenizers_are_identical_and_a_mapping_serves_both(place: Path) -> None:
    done = run(place, "compat", "old.tiktoken", "old.tiktoken", "--exit-code")
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == "old and old: identical"
    assert "serves the other too" in done.stdout


def test_compat_exits_with_1_only_where_it_is_asked_to(place: Path) -> None:
    assert run(place, "compat", "old.tiktoken", "new.tiktoken").returncode == 0
    assert run(place, "compat", "old.tiktoken", "new.tiktoken", "--exit-code").returncode == 1


def test_compat_counts_the_lines_of_a_corpus_that_differ(place: Path) -> None:
    (place / "corpus.txt").write_text("the 12\nnothing\n  to see\nthen\n", encoding="utf-8")
    arguments = ("compat", "old.tiktoken", "new.tiktoken", "--corpus", "corpus.txt")
    corpus = json.loads(run(place, *arguments, "--json").stdout)["corpus"]
    # `nothing` and the indented line behind it are one line; each of the three holds `th`, and two hold `the`.
    assert (corpus["lines"], corpus["differing"]) == (3, 2)
    assert corpus["examples"][0]["a"] == ["the"]
    assert corpus["examples"][0]["b"] == ["th", "e"]
    assert "66.7% of 3 lines of the corpus are encoded otherwise" in run(place, *arguments).stdout


@pytest.mark.parametrize("columns", [60, 100])
def test_compat_fits_a_terminal(place: Path, columns: int) -> None:
    done = run(place, "compat", "old.tiktoken", "new.tiktoken", COLUMNS=str(columns))
    assert max(map(len, done.stdout.splitlines()[4:])) <= columns


def test_compat_writes_a_page_that_escapes_what_files_say(place: Path) -> None:
    rank_file(place / "evil.tiktoken", [b"<script>"])
    done = run(place, "compat", "evil.tiktoken", "old.tiktoken", "--html", "page.html")
    assert (done.returncode, done.stdout) == (0, "")
    page = (place / "page.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "&lt;script&gt;" in page
    assert "<script>" not in page


def test_list_names_every_version(place: Path) -> None:
    listed = json.loads(run(place, "list", "--json").stdout)
    assert {entry["name"] for entry in listed if not entry["shipped"]} == {"student--old", "student--new"}
    assert "student--new" in run(place, "list").stdout


def test_list_of_an_empty_store_says_how_to_fill_it(tmp_path: Path) -> None:
    done = run(tmp_path, "list", "--json")
    assert all(entry["shipped"] for entry in json.loads(done.stdout))


def test_verify_without_names_checks_the_whole_store_and_fails_for_one_bad_file(place: Path) -> None:
    assert run(place, "verify").returncode == 0
    (file,) = (place / "store" / "student--old").glob("*.npz")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    done = run(place, "verify")
    assert done.returncode == 1
    assert str(file) in done.stderr
    assert "student--new" in done.stdout


def test_verify_shares_a_large_store_out_and_keeps_its_order(place: Path) -> None:
    (file,) = (place / "store" / "student--old").glob("*.npz")
    for number in range(60):
        copy = place / "store" / f"copy-{number:02}" / file.name
        copy.parent.mkdir()
        copy.write_bytes(file.read_bytes() if number != 30 else b"damaged")
    done = run(place, "verify", "--json")
    results = [result for result in json.loads(done.stdout) if "copy-" in result["mapping"]]
    assert [Path(result["mapping"]).parent.name for result in results] == [f"copy-{number:02}" for number in range(60)]
    assert [result["ok"] for result in results] == [number != 30 for number in range(60)]
    assert done.returncode == 1


def test_gc_keeps_the_newest_version(place: Path) -> None:
    assert run(place, "build", "old.tiktoken", "student.tiktoken", "-q", "--decay", "0.2").returncode == 0
    assert len(list((place / "store" / "student--old").glob("*.npz"))) == 2
    assert run(place, "gc", "--dry-run").stdout.count("\n") == 1
    done = run(place, "gc", "--keep", "1")
    assert "1 file removed" in done.stderr
    (left,) = (place / "store" / "student--old").glob("*.npz")
    assert load_mapping(left).options["decay"] == 0.2


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("xtoken-align ins", "inspect"),
        ("xtoken-align build qwen3.", "qwen3.6"),
        ("xtoken-align inspect student--o", "student--old"),
        ("xtoken-align diff --ex", "--exit-code"),
    ],
)
def test_the_shell_completes_commands_aliases_names_and_options(place: Path, words: str, offered: str) -> None:
    done = run(place, _XTOKEN_ALIGN_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=str(len(words.split()) - 1))
    assert offered in {line.split(",")[1] for line in done.stdout.splitlines()}


def test_version_names_what_results_depend_on(tmp_path: Path) -> None:
    lines = run(tmp_path, "--version").stdout.splitlines()
    assert lines[0].startswith("xtoken-align ")
    assert {"numpy", "tokenizers"} <= {line.split()[0] for line in lines}
