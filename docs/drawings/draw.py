"""Draws the documentation's pictures from the vocabularies themselves: `python docs/drawings/draw.py`.

A test draws them anew and compares. The pictures are SVG without fonts of their own; colours follow the reader's light
or dark scheme.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Literal

import xtoken_align
from xtoken_align import Mapping, Vocab

HERE = Path(__file__).parent

STYLE = """
text { font: 14px ui-sans-serif, system-ui, sans-serif; fill: #24292f; }
.token { font: 15px ui-monospace, Menlo, Consolas, monospace; text-anchor: middle; }
.small { font-size: 12px; fill: #57606a; }
.mid { text-anchor: middle; }
.end { text-anchor: end; }
.student { fill: #dbeafe; stroke: #3b82c4; }
.teacher { fill: #fdebd0; stroke: #c77d1e; }
.group { fill: #8b949e; fill-opacity: .16; stroke: none; }
.line { stroke: #8b949e; fill: none; stroke-width: 1.4; }
.cut { stroke: #8b949e; stroke-dasharray: 3 3; }
.bar { fill: #c77d1e; }
.strong { font-weight: 600; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .small { fill: #9aa4ae; }
  .student { fill: #17324d; stroke: #58a6ff; }
  .teacher { fill: #45310f; stroke: #e3a04b; }
  .bar { fill: #e3a04b; }
}
"""

Side = Literal["student", "teacher"]


class Picture:
    """An SVG in the making: shapes at absolute places, in pixels."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.shapes: list[str] = []

    def text(self, x: float, y: float, words: str, kind: str = "") -> None:
        """Words whose baseline begins at (x, y)."""
        self.shapes.append(f'<text x="{x:g}" y="{y:g}" class="{kind}">{escape(words)}</text>')

    def box(self, x: float, y: float, width: float, height: float, kind: str) -> None:
        """A rectangle with its left upper corner at (x, y)."""
        place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
        self.shapes.append(f'<rect {place} rx="5" class="{kind}"/>')

    def line(self, points: Sequence[tuple[float, float]], kind: str = "line") -> None:
        """A line through points."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        self.shapes.append(f'<polyline points="{path}" class="{kind}"/>')

    def token(self, x: float, y: float, words: str, side: Side, width: float | None = None) -> float:
        """A token's box with its left upper corner at (x, y); returns the box's width."""
        width = width or wide(words)
        self.box(x, y, width, 30, side)
        self.text(x + width / 2, y + 20, words, "token")
        return width

    def svg(self) -> str:
        """The whole file."""
        size = f'width="{self.width}" height="{self.height}" viewBox="0 0 {self.width} {self.height}"'
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(self.title, quote=True)}">'
        )
        return "\n".join(
            [head, f"<title>{escape(self.title)}</title>", f"<style>{STYLE}</style>", *self.shapes, "</svg>\n"]
        )


def wide(words: str) -> float:
    """The width of a token's box: 9.2 pixels a character, twice that for ideographs and emoji."""
    return 18 + sum(18.4 if ord(letter) > 0x2E00 else 9.2 for letter in words)


def visible(surface: bytes) -> str:
    """A token as the pictures write it: spaces as ␣, broken characters as hex."""
    try:
        return surface.decode().replace(" ", "␣")
    except UnicodeDecodeError:
        return surface.hex(" ")


def overview(mapping: Mapping, student: Vocab, teacher: Vocab) -> Picture:
    """An aligned text over two tokenisations, and one row of W."""
    picture = Picture(760, 330, "A text aligned over two tokenisations, and the row of W of the token 201")
    text = "It rose 201 procent"
    chunks = aligned(picture, text, student, teacher, top=34)
    names = {"student": "student Llama-3", "teacher": "teacher Qwen3"}
    picture.text(8, 54, names["student"])
    picture.text(8, 124, names["teacher"])
    picture.text(
        8, 20, f"The same text in two tokenisations: {chunks} chunks, each the same bytes on both sides", "small"
    )

    picture.text(8, 192, "One row of W: which teacher tokens stand for the student's token 201", "small")
    row = mapping.row("201")
    token = picture.token(150, 235, visible(row.surface), "student")
    picture.text(8, 255, f"row {row.id}")
    for number, link in enumerate(row.links):
        left, width = 470, 220 * link.weight
        top = 206 + 36 * number
        picture.line([(150 + token + 4, 250), (330, 250), (350, top + 15), (400, top + 15)])
        picture.token(405, top, visible(link.surface), "teacher", 44)
        picture.box(left, top + 8, max(width, 2), 14, "bar")
        picture.text(left + width + 8, top + 20, f"{link.weight:.4f}", "small")
    picture.text(8, 320, "Weights fall by ten from piece to piece and sum to 1.", "small")
    return picture


def aligned(picture: Picture, text: str, student: Vocab, teacher: Vocab, *, top: float) -> int:
    """Both tokenisations of a text, chunk under chunk; returns the number of chunks."""
    spans = xtoken_align.align_texts([text], student=student, teacher=teacher)
    sides: list[tuple[Side, Vocab]] = [("student", student), ("teacher", teacher)]
    chunks = int(spans.student[0].max()) + 1
    left = 150.0
    for chunk in range(chunks):
        tokens = {
            side: [visible(bytes(vocab.surfaces[token])) for token, where in zip(
                getattr(spans, f"{side}_ids")[0], getattr(spans, side)[0], strict=True) if where == chunk]
            for side, vocab in sides
        }  # fmt: skip
        widest = max(sum(map(wide, own)) + 4 * (len(own) - 1) for own in tokens.values())
        picture.box(left - 4, top - 6, widest + 8, 114, "group")
        for (side, _), y in zip(sides, (top, top + 70), strict=True):
            own = tokens[side]
            spare = (widest - sum(map(wide, own)) - 4 * (len(own) - 1)) / len(own)
            x = left
            for token in own:
                x += picture.token(x, y, token, side, wide(token) + spare) + 4
        shape = ":".join(str(len(tokens[side])) for side, _ in sides)
        picture.text(left + widest / 2, top + 54, shape, "small mid")
        left += widest + 16
    return chunks


def surfaces(_: Mapping, student: Vocab, teacher: Vocab) -> Picture:
    """One surface behind four ways to write a token in a file."""
    del student, teacher
    picture = Picture(760, 214, "Four files write the same token differently; its surface is the same six bytes")
    written = [
        ("byte-level BPE (Llama-3, Qwen3)", "Ġinter"),
        ("SentencePiece, Unigram (Llama-2)", "▁inter"),
        ("rank file (.tiktoken), base64", "IGludGVy"),
        ("WordPiece (BERT), a word's start", "inter"),
    ]
    for number, (family, raw) in enumerate(written):
        y = 30 + 42 * number
        picture.text(250, y + 20, family, "end")
        width = picture.token(268, y, raw, "teacher", 110)
        picture.line([(268 + width + 6, y + 15), (420, y + 15), (462, 108), (480, 108)])
    picture.text(250, 18, "family", "small end")
    picture.text(323, 18, "as the file writes it", "small mid")
    picture.text(580, 82, "surface", "small mid")
    picture.token(490, 93, "␣inter", "student", 180)
    picture.text(580, 142, "20 69 6e 74 65 72", "token")
    return picture


def spans(_: Mapping, student: Vocab, teacher: Vocab) -> Picture:
    """Byte boundaries of two tokenisations; the common ones delimit chunks."""
    text = "x = 12345 😊"
    picture = Picture(760, 250, "Byte boundaries that both tokenisations have delimit the chunks")
    data = text.encode()
    unit, left = 41.0, 150.0
    cuts: list[set[int]] = []
    sides: list[tuple[Side, Vocab, float]] = [("student", student, 60), ("teacher", teacher, 156)]
    pieces = {
        side: [bytes(vocab.surfaces[token]) for token in vocab.encode_batch([text])[0]] for side, vocab, _ in sides
    }
    for side, _, _ in sides:
        ends = [sum(map(len, pieces[side][:number])) for number in range(len(pieces[side]) + 1)]
        cuts.append(set(ends))
    common = sorted(cuts[0] & cuts[1])
    for start, end in pairwise(common):
        picture.box(left + unit * start + 2, 42, unit * (end - start) - 4, 164, "group")
    for side, _, y in sides:
        at = 0
        for piece in pieces[side]:
            picture.token(left + unit * at + 4, y, visible(piece), side, unit * len(piece) - 8)
            at += len(piece)
    for number, byte in enumerate(data):
        letter = chr(byte) if 0x20 < byte < 0x7F else f"{byte:02x}"
        picture.text(left + unit * (number + 0.5), 128, letter, "token")
    for boundary in common:
        picture.line([(left + unit * boundary, 34), (left + unit * boundary, 214)], "cut")
        picture.text(left + unit * boundary, 28, str(boundary), "small mid")
    for y, words in ((80, "student Llama-3"), (128, "bytes of the text"), (176, "teacher Qwen3")):
        picture.text(8, y, words)
    picture.text(8, 238, f"{len(common) - 1} chunks. Numbers above: common boundaries, in bytes.", "small")
    return picture


def bins(mapping: Mapping, student: Vocab, teacher: Vocab) -> Picture:
    """Edges from tokens to their first pieces, and the bins that they connect."""
    picture = Picture(760, 262, "First pieces connect the tokens of both vocabularies into bins")
    student_bin, teacher_bin = mapping.bins()
    groups = [
        (["2", "20", "201"], ["2"]),
        ([" polit", " politik"], [" polit"]),
        ([" diffic"], [" diffic", " difficolt"]),
    ]
    left = 22.0
    for student_words, teacher_words in groups:
        ids = {
            "student": [surface_id(student, word) for word in student_words],
            "teacher": [surface_id(teacher, word) for word in teacher_words],
        }
        numbers = {int(student_bin[token]) for token in ids["student"]}
        numbers |= {int(teacher_bin[token]) for token in ids["teacher"]}
        if len(numbers) != 1:
            raise ValueError(f"{student_words} and {teacher_words} are in several bins: {numbers}")
        words = {side: [visible(bytes(vocab.surfaces[token])) for token in ids[side]] for side, vocab in
                 (("student", student), ("teacher", teacher))}  # fmt: skip
        (number,) = numbers
        others = [int((which == number).sum()) - len(ids[side]) for side, which in
                  (("student", student_bin), ("teacher", teacher_bin))]  # fmt: skip
        width = max(sum(wide(word) + 10 for word in own) for own in words.values()) + 30
        width = max(width, 150)
        picture.box(left, 46, width, 166, "group")
        places: dict[str, list[float]] = {}
        for side, y, more in (("student", 74, others[0]), ("teacher", 160, others[1])):
            x = left + 14
            places[side] = []
            for word in words[side]:
                own = picture.token(x, y, word, "student" if side == "student" else "teacher")
                places[side].append(x + own / 2)
                x += own + 10
            if more:
                picture.text(left + 14, y - 8 if side == "student" else y + 46, f"and {more:,} more", "small")
        for place in places["student"]:
            picture.line([(place, 106), (places["teacher"][0], 158)])
        for place in places["teacher"][1:]:
            picture.line([(places["student"][0], 106), (place, 158)])
        left += width + 18
    picture.text(
        22, 30, "student Llama-3, above, and teacher Qwen3, below: a line joins a token to its first piece", "small"
    )
    count = len(set(student_bin[student_bin >= 0].tolist()))
    picture.text(22, 234, "Each grey box is a bin: one outcome that both models can give a probability to.", "small")
    picture.text(22, 253, f"This pair has {count:,} bins.", "small")
    return picture


def surface_id(vocab: Vocab, word: str) -> int:
    """The first id with this surface."""
    return [bytes(surface) for surface in vocab.surfaces].index(word.encode())


def chain(mapping: Mapping, student: Vocab, teacher: Vocab) -> Picture:
    """The levels of C-KL for one student token and its three teacher pieces."""
    del student, teacher
    picture = Picture(760, 350, "C-KL: what is compared at each level of the chunk 201")
    levels = [
        ("level 1", "both have read: rose␣", ["0…", "1…", "2…", "3…", "␣the", "…"], 2, "all bins"),
        (
            "level 2",
            "teacher has read: 2",
            ["20…", "21…", "22…", "29…", "END: 2"],
            0,
            "student tokens that begin with 2",
        ),
        (
            "level 3",
            "teacher has read: 2 0",
            ["200", "201", "202", "209", "END: 20"],
            1,
            "student tokens that begin with 20",
        ),
    ]
    for number, (name, read, outcomes, taken, among) in enumerate(levels):
        y = 62 + 98 * number
        picture.text(14, y + 12, name, "strong")
        picture.text(14, y + 32, read, "small")
        x = 210.0
        for index, outcome in enumerate(outcomes):
            width = max(wide(outcome), 70)
            picture.box(x, y, width, 30, "student" if index == taken else "group")
            picture.text(x + width / 2, y + 20, outcome, "token")
            if index == taken and number < len(levels) - 1:
                target = 210 + 35
                picture.line(
                    [
                        (x + width / 2, y + 32),
                        (x + width / 2, y + 46),
                        (target - 45, y + 46),
                        (target - 45, y + 113),
                        (target - 37, y + 113),
                    ]
                )
            x += width + 8
        picture.text(210, y - 7, among, "small")
    del mapping
    picture.text(14, 24, "The student wrote 201; the teacher wrote 2, 0, 1. Blue: what the text says.", "small")
    picture.text(
        14,
        320,
        "Each level is one KL between the teacher's distribution at its own position and the student's one",
        "small",
    )
    picture.text(
        14, 338, "distribution, restricted and grouped. The student's tokens are taught to their last digit.", "small"
    )
    return picture


PICTURES: dict[str, Callable[[Mapping, Vocab, Vocab], Picture]] = {
    function.__name__: function for function in (overview, surfaces, spans, bins, chain)
}


def drawn() -> dict[str, str]:
    """Every picture as SVG, by file name."""
    mapping = xtoken_align.load("llama-3--qwen3")
    student, teacher = xtoken_align.read_vocab("llama-3"), xtoken_align.read_vocab("qwen3")
    return {f"{name}.svg": draw(mapping, student, teacher).svg() for name, draw in PICTURES.items()}


if __name__ == "__main__":
    for name, svg in drawn().items():
        (HERE / name).write_text(svg, encoding="utf-8")
