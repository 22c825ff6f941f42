"""Names and words of a configuration as people spell them: other words for a setting, other spellings of a value."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

Mistake = tuple[str, str]
"""The place of a mistake, such as `teachers[0].weight`, and a sentence about it that names the place."""

_WORDS = {
    "student": "pupil student_model student_model_name_or_path",
    "teachers": "teacher teacher_model teacher_model_name_or_path master",
    "texts": "text data dataset datasets dataset_name corpus files train_data train_file train_dataset prompts",
    "output": "output_dir out save_dir output_folder outdir",
    "text_field": "dataset_text_field column field text_column messages_field",
    "longest_text": "max_characters chunk_size",
    "holdout": "eval_size val_size test_size validation validation_split held_out heldout eval_rows",
    "training": "train trainer training_args training_arguments args",
    "lora": "peft peft_config lora_config adapter",
    "loss": "loss_options loss_config kd distillation",
    "collate": "collator",
    "student.model": "path name model_name model_name_or_path model_id name_or_path",
    "student.dtype": "torch_dtype precision",
    "student.chat_template": "template jinja chat_template_path",
    "teachers.model": "path name model_name model_name_or_path model_id name_or_path",
    "teachers.dtype": "torch_dtype precision",
    "teachers.chat_template": "template jinja chat_template_path",
    "teachers.weight": "alpha lambda share coefficient",
    "loss.kind": "type name method loss loss_type loss_kind",
    "loss.temperature": "t tau temp kd_temperature",
    "loss.kd_weight": "alpha kd_alpha kl_weight lambda_kd distillation_weight kd_coef",
    "loss.ce_weight": "ce ce_alpha lm_weight hard_weight lambda_ce sft_weight",
    "loss.top_k": "topk k",
    "loss.divergence": "kl kl_type reverse_kl kl_direction",
    "lora.r": "rank lora_r lora_rank",
    "lora.lora_alpha": "alpha",
    "lora.lora_dropout": "dropout",
    "lora.target_modules": "targets modules lora_target_modules",
    "training.learning_rate": "lr learningrate max_lr peak_lr",
    "training.num_train_epochs": "epochs num_epochs n_epochs max_epochs train_epochs",
    "training.max_steps": "steps num_steps train_steps iterations max_iters num_training_steps total_steps",
    "training.per_device_train_batch_size": (
        "batch_size bs batch train_batch_size per_device_batch_size micro_batch_size device_batch_size"
    ),
    "training.per_device_eval_batch_size": "eval_batch_size",
    "training.gradient_accumulation_steps": (
        "accumulation grad_accum accumulation_steps gradient_accumulation grad_acc_steps accumulate_grad_batches"
    ),
    "training.lr_scheduler_type": "schedule scheduler lr_scheduler lr_schedule scheduler_type",
    "training.warmup_steps": "warmup num_warmup_steps warmup_iters",
    "training.weight_decay": "wd decay",
    "training.max_grad_norm": "grad_clip clip clip_grad gradient_clipping clip_grad_norm grad_norm gradient_clip_val",
    "training.optim": "optimizer optimiser",
    "training.save_steps": "save_every save_interval checkpoint_every checkpointing_steps save_freq",
    "training.save_total_limit": "keep keep_last max_checkpoints",
    "training.logging_steps": "log_every log_interval log_steps logging_interval log_freq",
    "training.eval_steps": "eval_every eval_interval eval_freq evaluate_every val_check_interval",
    "training.dataloader_num_workers": "workers num_workers",
    "training.report_to": "logger tracker log_with wandb tensorboard",
    "training.run_name": "wandb_run_name experiment_name",
    "training.gradient_checkpointing": "activation_checkpointing grad_checkpointing use_gradient_checkpointing",
    "training.seed": "random_seed random_state",
    "training.max_student_tokens": (
        "max_seq_length max_seq_len seq_length seq_len sequence_length context_length block_size cutoff_len max_tokens"
    ),
    "training.max_new_tokens": "max_completion_length max_gen_tokens generation_max_length",
    "training.hub_model_id": "hub_id repo_id hub_repo",
    "training.hub_token": "hf_token token",
    "training.push_to_hub": "push upload",
}
"""A setting's place -> other words for it, from earlier versions, transformers, TRL, peft, lightning and others."""

_TELLS = {
    "training.precision": "is written as bf16: true or fp16: true; without either it is float32",
    "training.dtype": "is written as bf16: true or fp16: true; without either it is float32",
    "training.device": "is written as use_cpu: true",
    "training.max_length": "is max_student_tokens and max_teacher_tokens, since the two sides count differently",
    "training.beta": "is beta under `loss`, where divergence: jsd reads it",
    "training.temperature": "is generation_temperature for sampling, and temperature under `loss` for the divergence",
    "training.output_dir": "is the file's `output`",
    "training.resume_from_checkpoint": "is not needed: the same command goes on from the last checkpoint",
}
"""Settings that are no other one alone, or are not needed."""

_VALUES = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "fp32": "float32",
    "float": "float32",
    "kl": "forward",
    "forwardkl": "forward",
    "reversekl": "reverse",
    "rkl": "reverse",
    "js": "jsd",
}
"""Other words for values, folded."""


def folded(word: str) -> str:
    """A word without what people write in different ways: `C_KL` and `c-kl` are both `ckl`."""
    return re.sub(r"[^a-z0-9]", "", word.lower())


def spelled(value: Any, words: Iterable[Any]) -> Any:
    """The word that a value spells otherwise, else the value.

    >>> spelled("C_KL", ["p-kl", "c-kl"]), spelled("bf16", ["float32", "bfloat16"]), spelled(False, ["no", "steps"])
    ('c-kl', 'bfloat16', 'no')
    """
    # YAML reads `no` as false.
    text = {False: "no", True: "yes"}[value] if isinstance(value, bool) else value
    if not isinstance(text, str):
        return value
    own = folded(text)
    by_folding = {folded(word): word for word in words if isinstance(word, str)}
    return by_folding.get(own, by_folding.get(_VALUES.get(own, ""), value))


def number(value: Any) -> Any:
    """The number that YAML took for a text, else the value: YAML 1.1 wants a point in `1e-4`, and nobody writes it.

    >>> number("1e-4"), number("5e3"), number("12"), number("1_000")
    (0.0001, 5000, '12', '1_000')
    """
    if not isinstance(value, str) or not re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+", value):
        return value
    read = float(value)
    return int(read) if read.is_integer() and abs(read) < 2**53 else read


def unknown_settings(
    keys: Iterable[Any], known: Sequence[str], where: str = "", others: Mapping[str, str] | None = None
) -> Iterator[Mistake]:
    """A mistake for every key that is not known, with what it is called here, or the nearest name that is known.

    Args:
        keys: the keys that a file has.
        known: those of this place.
        where: the place: `training`, `teachers[0].loss`, or nothing for the file itself.
        others: settings of other places that may be meant, by name.
    """
    section = re.sub(r"\[\d+\]", "", where)
    section = "loss" if section == "teachers.loss" else section
    for key in keys:
        place = inside(where, key)
        if inside(section, key) in _TELLS:
            yield place, f"{place} {_TELLS[inside(section, key)]}"
        elif key not in known:
            yield place, _advice(str(key), where, known, section, others or {})


def _advice(key: str, where: str, known: Sequence[str], section: str, others: Mapping[str, str]) -> str:
    """What a key that is not known is called, or where it stands."""
    own, place = folded(key), inside(where, key)
    same = [name for name in known if folded(name) == own]
    if same:
        return f"no setting is called {place!r}: did you mean {inside(where, same[0])!r}?"
    targets = _BY_WORD.get(own, ())
    for target in targets:
        if target.rpartition(".")[0] == section:
            return f"{place} is called {target.rpartition('.')[2]}"
    # What is no word of this place may be one of another's: `lr` in the file itself, and `texts` under `training`.
    elsewhere = others.get(key) or next((target for target in targets if target in others.values()), None)
    if elsewhere is not None:
        return f"no setting is called {place!r}: it is {elsewhere}"
    close = nearest(key, known)
    meant = f": did you mean {inside(where, close)!r}?" if close else "."
    every = ", ".join(known) if len(known) <= 40 else "those of XTokenConfig and transformers.TrainingArguments"
    return f"no setting is called {place!r}{meant} The settings are {every}"


def _by_word() -> dict[str, tuple[str, ...]]:
    """A folded word -> the settings that it may stand for."""
    places: dict[str, list[str]] = {}
    for target, words in _WORDS.items():
        for word in words.split():
            places.setdefault(folded(word), []).append(target)
    return {word: tuple(dict.fromkeys(targets)) for word, targets in places.items()}


_BY_WORD = _by_word()


def nearest(word: str, known: Sequence[str]) -> str | None:
    """The known word that a mistaken one was probably meant to be."""
    from rapidfuzz import process
    from rapidfuzz.distance import Indel

    # A ratio from 0 to 1: `learning-rate` to `learning_rate` scores 0.92, `batch` to `batch_size` 0.67.
    close = process.extractOne(word, known, scorer=Indel.normalized_similarity, score_cutoff=0.6)
    return close[0] if close else None


def inside(where: str, name: Any) -> str:
    """The place of a setting: `training.seed` for `seed` under `training`."""
    return f"{where}.{name}" if where else str(name)


def respelled(options: Mapping[str, Any], words: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Options by name with values as they are spelled here.

    Args:
        options: the options.
        words: the words that an option may be.
    """
    return {name: spelled(value, words[name]) if name in words else number(value) for name, value in options.items()}
