"""`align`, as a user runs it: both tokenisations of a text, one over the other."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from command_line import START, part
from command_results import Result
from rich.cells import cell_len
from small_vocabs import make_vocab
from test_compare_commands import rank_file

from xtoken_align.spans.drawing import Side, cells, count_cells
from xtoken_align.vocab.kinds import Kind

Invoke = Callable[..., Result]

MIXED = (
    "English and 12345 digits, 你好世界 한국어\n"
    "👩‍👩‍👧‍👦 🇩🇪 👍🏽 ❤️ 😊 مرحبا בעולם é e\u0301 हिन्दी\n\n"
    'def f(x):\n    if x:\n\treturn "a│␣"  # ⟨░┊\n'
    "nul \0 esc \x1b[31m rlo \u202e zwsp \u200b bom \ufeff"
)


def prefixes(*words: str) -> list[bytes]:
    """Tokens for words, with those on the way from single bytes."""
    encoded = [word.encode() for word in words]
    return list(dict.fromkeys(word[:size] for word in encoded for size in range(2, len(word) + 1)))


@pytest.fixture
def align(invoke: Invoke, tmp_path: Path) -> Invoke:
    """`align` with a teacher and a student that split each other's tokens; words and single bytes are all they have."""
    teacher = rank_file(tmp_path / "master.tiktoken", prefixes("the", "12", "你", "👩", "🇩🇪", "مر", "é", "  "))
    student = rank_file(tmp_path / "pupil.tiktoken", prefixes("th", "123", "你好", "👍🏽", "😊", "حبا", "\u200d"))
    patterns = ("--teacher-pattern", r"\s+|\S+", "--student-pattern", r"\s+|\S+")
    return lambda *arguments: invoke("align", teacher, student, *arguments, *patterns)


def rows(printed: str) -> list[list[str]]:
    """The rows of a drawing: the student's line and the teacher's."""
    found = [block.split("\n") for block in printed.rstrip("\n").split("\n\n")[1:]]
    assert all(len(row) == 2 for row in found)
    return found


def borders(line: str, sign: str = "│") -> list[int]:
    """Where the borders between cells stand, as a terminal counts."""
    return [cell_len(line[: match.start()]) for match in re.finditer(re.escape(sign), line)]


def written(surface: str | dict[str, str]) -> bytes:
    return surface.encode() if isinstance(surface, str) else bytes.fromhex(surface["hex"])


def test_the_student_stands_over_the_teacher_and_tokens_inside_a_chunk_are_set_apart(align: Invoke) -> None:
    result = align("--text", "the 1234")
    assert (
        result.out.splitlines()[0]
        == "Student pupil learns from teacher master: 4 chunks (2 1 to 1, 1 1 to n, 1 n to 1)"
    )
    assert rows(result.out) == [["pupil  │th┊e│␣│123 │4│", "master │the │␣│12┊3│4│"]]


@pytest.mark.parametrize("width", ["20", "50", "100", "400"])
def test_borders_of_both_lines_stand_in_the_same_columns_for_any_script(
    align: Invoke, monkeypatch: pytest.MonkeyPatch, width: str
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    drawn = rows(align("--text", MIXED).out)
    for student, teacher in drawn:
        assert borders(student) == borders(teacher)
        assert cell_len(student) == cell_len(teacher) <= max(int(width), 25)
    assert any("你好" in student for student, _ in drawn)
    assert any("👍🏽" in student for student, _ in drawn)


def test_what_is_drawn_is_the_text(align: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    drawn = rows(align("--text", MIXED).out)
    for side in (0, 1):
        line = "".join(row[side].partition("│")[2] for row in drawn)
        assert spelled(line) == MIXED.encode()


def spelled(line: str) -> bytes:
    """The text of a drawn line: padding, signs and escapes undone."""
    # In hexadecimal a space stands between bytes, elsewhere it is padding.
    line = re.sub(r"⟨([^⟩]*)⟩", lambda match: "⟨" + re.sub("[ │┊]", "", match[1]) + "⟩", line)
    line = re.sub("[ │┊\u200e]|◌(?=\\W)", "", line).replace("␣", " ")
    escapes = r"⟨(?P<hex>[^⟩]*)⟩|\\(?P<name>[tnr\\])|\\(?:x|u|U)(?P<code>(?<=x)..|(?<=u)....|(?<=U)........)"
    made, at = b"", 0
    for match in re.finditer(escapes, line):
        made += line[at : match.start()].encode()
        if match["hex"]:
            made += bytes.fromhex(match["hex"])
        elif match["name"]:
            made += {"t": b"\t", "n": b"\n", "r": b"\r", "\\": b"\\"}[match["name"]]
        else:
            made += chr(int(match["code"], 16)).encode()
        at = match.end()
    return made + line[at:].encode()


def test_a_character_that_one_side_splits_is_one_chunk_with_its_bytes(align: Invoke) -> None:
    assert rows(align("--text", "😊").out) == [["pupil  │😊               │", "master │⟨f0 9f⟩┊⟨98⟩┊⟨8a⟩│"]]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\u200d", r"\u200d"),
        ("\x1b", r"\x1b"),
        ("\u202e", "⟨e2 80⟩  │⟨ae⟩"),
        ("\t", r"\t"),
        ("\\", "\\\\"),
        ("  ", "␣┊␣"),
    ],
)
def test_what_would_not_be_seen_is_written_out(align: Invoke, text: str, shown: str) -> None:
    assert f"│{shown}" in rows(align("--text", text).out)[0][0]


def test_signs_of_the_drawing_half_flags_and_lone_marks_are_not_taken_for_something_else() -> None:
    pen = part("align_report").Pen("utf-8")

    def drawn(text: str) -> str:
        return "".join(atom.text for atom in part("align_report").draw_token(pen, text.encode()))

    assert drawn("│␣") == r"\u2502\u2423"
    assert drawn("🇪") == r"\U0001f1ea"
    assert drawn("🇩🇪") == "🇩🇪"
    assert drawn("🏽") == r"\U0001f3fd"
    assert drawn("\u0301") == "◌\u0301"
    assert drawn("e\u0301") == "e\u0301"


def test_text_from_right_to_left_is_kept_from_moving_its_neighbours(align: Invoke) -> None:
    (student, teacher), *_ = rows(align("--text", "مرحبا").out)
    for line in (student, teacher):
        for word in re.findall("[\u0590-\u06ff]+", line):
            assert f"{word}\u200e" in line
    assert "\u200e" not in align("--text", "left 你").out


def test_a_row_ends_where_a_line_of_the_text_does(align: Invoke) -> None:
    drawn = rows(align("--text", "the\n12\n\n1").out)
    assert [student for student, _ in drawn] == [r"pupil  │th┊e│\n│", r"pupil  │12│\n│", r"pupil  │\n│", "pupil  │1│"]


def test_a_token_that_one_side_alone_has_is_a_gap(invoke: Invoke, tokenizers: tuple[str, str], tmp_path: Path) -> None:
    plain = rank_file(tmp_path / "plain.tiktoken", [])
    gap = rows(invoke("align", plain, tokenizers[1], "--text", "q", "--bos", "--eos").out)
    assert gap == [["pupil │<s>│q│</s>│", "plain │░░░│q│░░░░│"]]
    other = invoke("align", tokenizers[0], plain, "--text", "q", "--bos")
    assert rows(other.out) == [["plain  │░░░│q│", "master │<s>│q│"]]
    assert "in no chunk: student 0, teacher 1" in other.out
    report = json.loads(invoke("align", plain, tokenizers[1], "--text", "q", "--bos", "--json").out)
    assert report["gaps"] == {"student": [[0, 1]], "teacher": []}
    assert (report["stats"]["student_gaps"], report["stats"]["teacher_gaps"]) == (1, 0)


def test_special_tokens_of_one_role_are_a_chunk_that_says_nothing(invoke: Invoke, tokenizers: tuple[str, str]) -> None:
    assert rows(invoke("align", *tokenizers, "--text", "q", "--bos").out) == [["pupil  │<s>│q│", "master │<s>│q│"]]
    report = json.loads(invoke("align", *tokenizers, "--text", "q", "--bos", "--json").out)
    assert report["chunks"][0] == {"student": [0, 1], "teacher": [0, 1], "surface": ""}
    assert report["gaps"] == {"student": [], "teacher": []}


def drawing(student: list[int], teacher: list[int], width: int = 80) -> list[str]:
    """Draws tokens `<x>`, a, b, c, ... that stand in the chunks given."""
    letters = [(b"<x>", Kind.SPECIAL), *(bytes([code]) for code in b"abcdefgh")]
    count = max(student) + 1
    sides = [
        Side(make_vocab(letters, name=name), np.arange(len(chunk)), np.array(chunk), count)
        for name, chunk in (("one", student), ("two", teacher))
    ]
    drawn = part("align_report").Drawing(*sides, part("align_report").Pen("utf-8"), width)
    assert count_cells(*sides) == len(list(cells(*sides)))
    return ["".join(text for text, _ in line) for line in drawn.lines(cells(*sides))]


def test_gaps_of_both_sides_at_one_place_stand_one_after_the_other() -> None:
    assert drawing([0, -1, 1], [0, -1, -1, 1]) == ["", "one │<x>│a│░░░│b│", "two │<x>│░│a┊b│c│"]


def test_a_token_inside_a_chunk_that_is_no_part_of_it_is_marked() -> None:
    assert drawing([0, -1, 0], [0]) == ["", "one │<x>┊░a┊b│", "two │<x>     │"]


def test_a_chunk_wider_than_the_output_goes_on_in_the_next_row() -> None:
    lines = drawing([0] * 9, [0], width=20)
    assert lines == [
        *("", "one │<x>┊a┊b┊c┊d┊e┊f", "two │<x>            "),
        *("", "one │┊g┊h│", "two │    │"),
    ]


def test_a_chunk_of_very_many_tokens_is_cut() -> None:
    pen = part("align_report").Pen("utf-8")
    atoms = pen.tokens([b"a"] * 1000, [False] * 1000)
    assert atoms[-1].text == r"\..[840 more]"
    assert len(atoms) < 400


@pytest.mark.parametrize("text", [MIXED, "", "12345", "\n\n  the"])
def test_the_ranges_and_surfaces_of_the_json_rebuild_the_text(align: Invoke, text: str) -> None:
    report = json.loads(align("--text", text, "--json").out)
    assert report.keys() == {"schema", "student", "teacher", "stats", "chunks", "gaps"}
    assert (report["schema"], report["student"]["name"], report["teacher"]["name"]) == (1, "pupil", "master")
    assert b"".join(written(chunk["surface"]) for chunk in report["chunks"]) == text.encode()
    assert report["stats"]["chunks"] == len(report["chunks"])
    for side in ("student", "teacher"):
        ends = [0, *(chunk[side][1] for chunk in report["chunks"])]
        assert [chunk[side][0] for chunk in report["chunks"]] == ends[:-1]
        assert ends[-1] == len(report[side]["ids"]) == report["stats"][f"{side}_tokens"]


def test_the_surface_of_a_chunk_in_json_is_what_its_tokens_stand_for(align: Invoke) -> None:
    report: dict[str, Any] = json.loads(align("--text", "the 12345 😊\u202e", "--json").out)
    assert report["chunks"][0] == {"student": [0, 2], "teacher": [0, 1], "surface": "the"}
    assert {"student": [3, 4], "teacher": [2, 4], "surface": "123"} in report["chunks"]
    assert [chunk["surface"] for chunk in report["chunks"]][-3:] == ["😊", {"hex": "e280"}, {"hex": "ae"}]


def test_statistics_alone_are_a_table_or_json_without_chunks(align: Invoke) -> None:
    table = align("--text", "the 1234", "--stats").out
    found = dict(re.findall(r"^(\S to \S|all) +(\d+ +\d+%)", table, re.MULTILINE))
    assert {name: cells.split() for name, cells in found.items()} == {
        "1 to 1": ["2", "50%"],
        "1 to n": ["1", "25%"],
        "n to 1": ["1", "25%"],
        "n to m": ["0", "0%"],
        "all": ["4", "100%"],
    }
    assert "Tokens: student 5, teacher 5." in table
    assert "The longest chunk has 2 tokens on one side." in table
    report = json.loads(align("--text", "the 1234", "--stats", "--json").out)
    assert report.keys() == {"schema", "student", "teacher", "stats"}
    assert report["stats"]["one_to_one"] == 0.5


def test_the_same_tokenizer_twice_is_told_apart_by_roles(invoke: Invoke, tokenizers: tuple[str, str]) -> None:
    result = invoke("align", tokenizers[0], tokenizers[0], "--text", "q")
    assert rows(result.out) == [["student │q│", "teacher │q│"]]


def test_a_file_stdin_and_an_option_are_read_alike_to_the_byte(
    align: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = "\ufeffthe\r\n12\r"
    (tmp_path / "text.txt").write_bytes(text.encode())
    expected = align("--text", text).out
    assert align(tmp_path / "text.txt").out == expected
    for arguments in ((), ("-",)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        assert align(*arguments).out == expected


def test_a_terminal_without_a_text_is_wrong_usage() -> None:
    controller, terminal = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", START, "align", "a", "b"],
            stdin=terminal, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
    finally:
        os.close(controller)
        os.close(terminal)
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no text: name a FILE, give --text, or pipe a text into stdin." in done.stderr


def test_two_texts_are_wrong_usage(align: Invoke, tmp_path: Path) -> None:
    result = align(tmp_path / "a.txt", "--text", "b")
    assert result.code == 2
    assert "--text and the file" in result.err


def test_what_is_not_utf_8_is_refused_in_a_sentence_with_its_place(align: Invoke, tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"a\nb\xff")
    result = align(tmp_path / "bad.txt")
    assert (result.code, result.out) == (1, "")
    assert result.err.count("\n") == 1
    assert "bad.txt is not UTF-8 at byte 3 (line 2)" in result.err
    assert "--text is not UTF-8 at byte 1 (line 1)" in align("--text", os.fsdecode(b"a\xff")).err


def test_a_file_that_is_not_there_is_refused_by_name(align: Invoke, tmp_path: Path) -> None:
    result = align(tmp_path / "absent.txt")
    assert (result.code, result.out) == (1, "")
    assert "absent.txt': name one, or give the text itself as --text" in result.err


@pytest.fixture
def coloured(execute: Invoke, tokenizers: tuple[str, str]) -> Callable[..., Result]:
    """The command in an environment that asks for colours, and whatever else it says."""

    def call(**environment: str) -> Result:
        wanted = {"FORCE_COLOR": "1", "COLORTERM": "truecolor", "TERM": "xterm", "COLUMNS": "90", **environment}
        return execute("align", *tokenizers, "--text", "the cat 你", "--bos", PYTHONIOENCODING="utf-8", **wanted)

    return call


def test_without_colours_the_drawing_is_the_same(coloured: Callable[..., Result]) -> None:
    plain = coloured(NO_COLOR="1").out
    assert "\x1b" not in plain
    vivid = coloured().out
    assert "\x1b[" in vivid
    assert re.sub(r"\x1b\[[\d;]*m", "", vivid) == plain


def test_neighbouring_chunks_have_different_colours(coloured: Callable[..., Result]) -> None:
    line = coloured().out.splitlines()[2]
    styles = [re.findall(r"48;[\d;]+", cell) for cell in line.split("│")[1:-1]]
    assert len(styles) > 3
    assert all(own and other and own[-1] != other[-1] for own, other in pairwise(styles))


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_where_the_encoding_lacks_the_signs_columns_stay_true(
    execute: Invoke, tokenizers: tuple[str, str], encoding: str
) -> None:
    result = execute("align", *tokenizers, "--text", MIXED.replace("\0", ""), PYTHONIOENCODING=encoding)
    for student, teacher in rows(result.out):
        assert borders(student, "|") == borders(teacher, "|")
        assert len(student) == len(teacher) <= 100


def test_a_long_text_is_shown_in_part_with_a_note(align: Invoke) -> None:
    result = align("--text", "the\n" * 1000)
    assert len(rows(result.out)) == 250
    assert result.out.splitlines()[0].startswith("Student pupil learns from teacher master: 2,000 chunks")
    assert "Note: 500 of 2,000 chunks and gaps are shown: --all shows all." in result.err
    few = align("--text", "the\n" * 1000, "--limit", "2")
    assert len(rows(few.out)) == 1
    whole = align("--text", "the\n" * 1000, "--all")
    assert len(rows(whole.out)) == 1000
    assert "shown" not in whole.err
    assert len(json.loads(align("--text", "the\n" * 1000, "--json", "--limit", "2").out)["chunks"]) == 2000


def test_the_drawing_takes_time_in_proportion_to_the_text() -> None:
    def seconds(tokens: int) -> float:
        # One line, and every other chunk with two tokens on one side.
        chunk = np.repeat(np.arange(tokens), 2)[:tokens]
        letters = make_vocab([b"a", b"b"])
        side = Side(letters, np.arange(tokens) % 2, chunk, int(chunk[-1]) + 1)
        started = perf_counter()
        drawn = part("align_report").Drawing(side, side, part("align_report").Pen("utf-8"), 80)
        assert sum(1 for _ in drawn.lines(cells(side, side))) > tokens / 40
        return perf_counter() - started

    assert min(seconds(32_000) for _ in range(2)) < 30 * min(seconds(4_000) for _ in range(3))


def test_a_file_of_a_million_tokens_is_aligned_and_shown_in_seconds(align: Invoke, tmp_path: Path) -> None:
    (tmp_path / "large.txt").write_text("the 12345 " * 120_000)
    started = perf_counter()
    result = align(tmp_path / "large.txt")
    assert perf_counter() - started < 60
    assert len(result.out) < 100_000
    assert "500 of 720,000 chunks" in result.err
