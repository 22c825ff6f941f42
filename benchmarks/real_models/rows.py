"""How should a split token's rows be made? Measures SmolLM2-135M after a transplant, in every way that was considered.

    python benchmarks/real_models/rows.py [--out FOLDER] [--work FOLDER]

Writes `rows.json` to `--out`: bits per byte of held-out text by how the input's and the head's rows are made,
untrained; what is left of the model after the way there and back; and whether it is unchanged under its own tokenizer.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
import torch
from material import Passage, drawn, in_a_way
from train import FULL, HELD_OUT_SEED, Place, World, measure

import xtoken_align
from xtoken_align.export.transplant import MADE, RowPlan, make_rows, plan_rows
from xtoken_align.vocab.kinds import Kind

HERE = Path(__file__).parent
WAYS = ("mean", "sum by W", "first piece", "last piece")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--work", type=Path, default=HERE.parents[1] / "build" / "real_models")
    parser.add_argument("--passages", type=int, default=8, help="held-out passages that are read")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        results = measured(World.read(Place(options.work, FULL), "transfer"), options.passages)
    (options.out / "rows.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def measured(world: World, count: int) -> dict[str, Any]:
    """Everything."""
    texts = drawn(world.held_out_pool, count, HELD_OUT_SEED)
    model = world.model("smollm2").eval()
    plan = plan_rows(world.mapping)
    old = model.get_input_embeddings().weight.detach()
    trained = np.flatnonzero(world.teacher_vocab.kinds <= Kind.BYTE)
    rows = {
        way: make_rows(old, in_a_way(world.mapping, plan, way), trained, torch.Generator().manual_seed(0))
        for way in WAYS
    }
    offset, direction = _offset(world, model, plan, texts=drawn(world.train, 8, 0))
    table = []
    for inputs in ("mean", "sum by W", "first piece"):
        states = [_states(model, rows[inputs], world, text) for text in texts]
        for way in WAYS:
            for label, head in (("", rows[way]), (", shared out", rows[way] + offset[:, None] * direction)):
                table.append({"input": inputs, "head": way + label, **_bits(states, head, world, plan, texts)})
                print(table[-1], flush=True)
    tied = rows["mean"] + offset[:, None] * direction
    states = [_states(model, tied, world, text) for text in texts]
    table.append({"input": "mean, shared out", "head": "tied", **_bits(states, tied, world, plan, texts)})
    print(table[-1], flush=True)
    return {"passages": count, "rows": plan.counts(), "table": table, **_there_and_back(world, model, texts)}


def _offset(world: World, model: Any, plan: RowPlan, texts: list[Passage]) -> tuple[torch.Tensor, torch.Tensor]:
    """What shares a first piece's probability out among the tokens that begin with it, in a head without a bias.

    Where n split tokens begin with one piece, each logit is to be lower by log(1 + n): an offset along the direction in
    which all hidden states agree, scaled so that the mean state has a product of 1 with it.
    """
    first = np.full(len(plan.way), -1)
    first[plan.split] = plan.pieces[:, 0]
    count = np.bincount(first[first >= 0], minlength=len(world.teacher_vocab))
    offset = np.zeros(len(plan.way), dtype=np.float32)
    offset[plan.split] = -np.log1p(count[first[plan.split]])
    embedding = model.get_input_embeddings().weight
    hidden = torch.cat([_hidden(model, embedding, _coded(world.teacher_vocab, text)) for text in texts])
    mean = hidden.mean(0)
    second = hidden.T @ hidden / len(hidden)
    second += torch.eye(len(mean)) * second.diagonal().mean() * 0.05
    direction = torch.linalg.solve(second, mean)
    return torch.from_numpy(offset), direction / (mean @ direction)


def _coded(vocab: Any, text: Passage) -> torch.Tensor:
    return torch.tensor([vocab.roles["bos"][0], *vocab.encode_batch([text.text])[0]])


def _hidden(model: Any, embedding: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Hidden states (tokens, D) at all but the last token."""
    with torch.autocast("cpu", torch.bfloat16):
        states = model.model(inputs_embeds=embedding[ids][None], use_cache=False).last_hidden_state
    return states[0, :-1].float()


def _states(model: Any, embedding: torch.Tensor, world: World, text: Passage) -> torch.Tensor:
    return _hidden(model, embedding, _coded(world.student_vocab, text))


def _bits(
    states: list[torch.Tensor], head: torch.Tensor, world: World, plan: RowPlan, texts: list[Passage]
) -> dict[str, float]:
    """Bits per byte of some passages, and bits a token where the token's row was made and where it was copied."""
    split = torch.zeros(len(plan.way), dtype=torch.bool)
    split[torch.from_numpy(plan.split)] = True
    spent, made = [], []
    for state, text in zip(states, texts, strict=True):
        ids = _coded(world.student_vocab, text)[1:]
        spent.append(-(state @ head.T).log_softmax(-1).gather(1, ids[:, None])[:, 0] / np.log(2))
        made.append(split[ids])
    bits, is_made = torch.cat(spent), torch.cat(made)
    size = sum(len(text.text.encode()) for text in texts)
    return {
        "bits_per_byte": round(float(bits.sum()) / size, 4),
        "bits_a_split_token": round(float(bits[is_made].mean()), 2),
        "bits_another_token": round(float(bits[~is_made].mean()), 2),
    }


def _there_and_back(world: World, model: Any, texts: list[Passage]) -> dict[str, Any]:
    """What is left of the model after two transplants, and under its own tokenizer."""
    begun = time.perf_counter()
    there = xtoken_align.transplant(model, world.mapping)
    seconds = time.perf_counter() - begun
    again = xtoken_align.transplant(
        there.model, xtoken_align.build(student=world.teacher_vocab, teacher=world.student_vocab)
    )
    same = xtoken_align.transplant(
        model, xtoken_align.build(student=world.teacher_vocab, teacher=world.teacher_vocab)
    ).model
    ids = _coded(world.teacher_vocab, texts[0])[None]
    before, after = (one.get_input_embeddings().weight for one in (model, again.model))
    exact = torch.from_numpy(again.plan.way == list(MADE).index("exact"))

    def bits(measured: Any, vocab: Any) -> float:
        found = measure(measured, vocab, texts)
        return round(sum(found["bits"].values()) / sum(found["bytes"].values()), 4)

    return {
        "own_logits_same_bits": torch.equal(same(ids).logits, model(ids).logits),
        "exact_rows": int(exact.sum()),
        "exact_rows_same_bits": int((before[exact] == after[exact]).all(1).sum()),
        "rows_back": again.plan.counts(),
        "seconds": round(seconds, 1),
        "bits_per_byte": {
            "before": bits(model, world.teacher_vocab),
            "there": bits(there.model, world.student_vocab),
            "back": bits(again.model, world.teacher_vocab),
        },
    }


if __name__ == "__main__":
    main()
