"""`inspect --html`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

Invoke = Callable[..., Any]


def test_the_page_is_written_and_nothing_is_printed(invoke: Invoke, built: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    result = invoke("inspect", built, "--html", page)
    assert (result.code, result.out) == (0, "")
    assert str(page) in result.err
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_the_page_recommends_by_the_critical_classes_that_are_named(
    invoke: Invoke, built: Path, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    assert invoke("inspect", built, "--html", page, "--critical", "digits_1").code == 0
    assert "paper names H-KL" in page.read_text(encoding="utf-8")


def test_json_is_printed_beside_the_page(invoke: Invoke, built: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    result = invoke("inspect", built, "--html", page, "--json")
    assert result.out.startswith("{")
    assert page.exists()


def test_a_place_that_cannot_be_written_is_refused_in_one_sentence(invoke: Invoke, built: Path, tmp_path: Path) -> None:
    result = invoke("inspect", built, "--html", tmp_path / "absent" / "report.html")
    assert result.code == 1
    assert "cannot write" in result.err
