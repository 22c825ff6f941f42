"""`inspect --corpus`, as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_compare_commands import place, rank_file, run  # noqa: F401 - the fixture


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
    assert "In 1 texts, " in table
    assert "Chunks whose first tokens lie in one bin: 100.00%" in table


def test_a_tokenizer_that_is_not_to_be_found_is_asked_for(place: Path) -> None:  # noqa: F811
    (place / "a.txt").write_text("x")
    (place / "student.tiktoken").rename(place / "elsewhere.tiktoken")
    done = run(place, "inspect", "student--old", "--corpus", "a.txt")
    assert done.returncode == 1
    assert "name it with --student" in done.stderr
    assert "Traceback" not in done.stderr


def test_another_tokenizer_is_refused(place: Path) -> None:  # noqa: F811
    (place / "a.txt").write_text("x")
    done = run(place, "inspect", "student--old", "--corpus", "a.txt", "--student", "new.tiktoken")
    assert done.returncode == 1
    assert "is not it" in done.stderr


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
