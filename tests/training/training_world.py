"""A small world to train in: two tokenizers trained on a few words, random Llamas with their heads, and texts."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from xtoken_align.training import XTokenConfig, XTokenTrainer

WORDS = [
    *("the", "sum", "of", "12", "and", "30", "is", "42", "while", "a", "river", "runs", "to", "sea"),
    *("nobody", "counts", "2026", "stones", "in", "it"),
]

COLLATE = {"max_student_tokens": 24, "max_teacher_tokens": 24}


def texts(count: int, *, seed: int = 0) -> list[dict[str, str]]:
    """Rows of a few words."""
    draw = random.Random(seed)
    return [{"text": " ".join(draw.choices(WORDS, k=draw.randint(3, 8)))} for _ in range(count)]


def write_tokenizer(folder: Path, *, size: int, more: Sequence[str] = (), digits: bool = False) -> None:
    """Trains a byte-level BPE vocabulary, with a token for each digit alone or not, and writes it as a model has it."""
    tokenizer = Tokenizer(models.BPE())
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False)
    split = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, whole]) if digits else whole
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<pad>", "<s>", "</s>", *more],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([row["text"] for row in texts(200, seed=9)], trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **roles}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def make_llama(width: int, *, seed: int, **changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    return LlamaForCausalLM(LlamaConfig(vocab_size=width, **{**sizes, **changes}))


class World:
    """Folders of a student and a teacher, made once per session."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.student, self.teacher, self.other = root / "student", root / "teacher", root / "other"
        for folder, size, seed in ((self.student, 290, 1), (self.teacher, 330, 2), (self.other, 310, 3)):
            more = ["<extra>"] if folder is self.other else []
            write_tokenizer(folder, size=size, more=more, digits=folder is not self.student)
            width = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
            # Logits beyond the tokenizer's ids, as most models have them.
            make_llama(width + 3, seed=seed).save_pretrained(folder)
        self.store = root / "store"

    def load(self, folder: Path) -> LlamaForCausalLM:
        return LlamaForCausalLM.from_pretrained(folder)


def arguments(folder: Path, **changes: Any) -> XTokenConfig:
    """Arguments of a short run on the processor."""
    chosen = {
        "output_dir": str(folder),
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 5e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "report_to": "none",
        "use_cpu": True,
        **changes,
    }
    return XTokenConfig(**chosen)


def make_trainer(world: World, folder: Path, **changes: Any) -> XTokenTrainer:
    """A trainer of the world's student; `model`, `teacher`, `loss`, `combine`, `rows` and arguments may be changed."""
    model = changes.pop("model", None) or world.load(world.student)
    teacher = changes.pop("teacher", None) or world.load(world.teacher)
    given = {
        "loss": changes.pop("loss", {}),
        "collate": {**COLLATE, **changes.pop("collate", {})},
        "train_dataset": changes.pop("rows", None) or texts(48),
        "eval_dataset": changes.pop("eval_rows", None),
        "tokenizer": changes.pop("tokenizer", world.student),
        "combine": changes.pop("combine", None),
    }
    return XTokenTrainer(model, arguments(folder, **changes), teacher=teacher, store=world.store, **given)


def losses(trainer: Any, name: str = "loss") -> list[float]:
    """What was logged at every step."""
    return [entry[name] for entry in trainer.state.log_history if "loss" in entry and name in entry]


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def far(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """The largest difference of two models' weights."""
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)
