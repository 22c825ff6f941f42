"""Caches of hidden states: every loss says what it says with the teacher in memory."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from cache_models import WIDTH, Causal, corpus, files_of, small_vocab, tiny
from small_vocabs import make_vocab

from xtoken_align import build
from xtoken_align.errors import ArtifactError, MismatchError, OptionError, XTokenError
from xtoken_align.losses import FusedHead, XTokenLoss, average_logits, fuse_head
from xtoken_align.losses.kinds import KINDS
from xtoken_align.mapping.mapping import Mapping
from xtoken_align.spans.batch import SpanCollator
from xtoken_align.training import TeacherCache, write_teacher_cache
from xtoken_align.training.cache.head import HEAD
from xtoken_align.training.teachers import LiveTeacher
from xtoken_align.vocab.kinds import Kind
from xtoken_align.vocab.vocab import Vocab

ROWS = [{"text": text} for text in ("abcab cde", "xyxy zab", "a", "mnopq rst uvw", "babbab")]

HEADS: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Gemma2": {"final_logit_softcapping": 5.0, "head_dim": 8},
    "Cohere": {"logit_scale": 0.25},
    "Granite": {"logits_scaling": 4.0},
    "Phi": {},
}
"""Models whose head is a matrix alone, or has a softcap, a factor, a divisor or a bias besides."""


@pytest.fixture(scope="module")
def student() -> Vocab:
    tokens: list[Any] = [*"abcdefghijklmnopqrstuvwxyz ", "abc", "ab", "xy", "st"]
    tokens += [(b"<s>", Kind.SPECIAL), (b"</s>", Kind.SPECIAL)]
    return make_vocab(tokens, name="student", roles={"bos": [len(tokens) - 2], "eos": [len(tokens) - 1]})


@pytest.fixture(scope="module")
def mapping(student: Vocab, vocab: Vocab) -> Mapping:
    return build(student=student, teacher=vocab)


@pytest.fixture
def folder(tmp_path: Path, vocab: Vocab) -> Path:
    """A cache of hidden states of the small corpus: six shards of four rows."""
    write(tiny("Gemma2", **HEADS["Gemma2"]), tmp_path / "hidden", vocab)
    return tmp_path / "hidden"


def write(model: Any, folder: Path, vocab: Vocab, rows: Any = None, **changes: Any) -> Any:
    options = {"teacher": vocab, "keep": "hidden", "batch_size": 3, "rows_per_shard": 4, **changes}
    return write_teacher_cache(model, corpus() if rows is None else rows, folder, **options)


def losses_of(mapping: Mapping, vocabs: tuple[Vocab, Vocab], teacher: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """Of every kind the loss, and its gradient for the student's logits."""
    shape = (*batch["student_input_ids"].shape, mapping.matrix.shape[0])
    losses = {}
    for kind in KINDS:
        if kind == "exact" and int(batch["spans"].student_segments.max()):
            # It reads rows of one document.
            continue
        logits = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
        loss_fn = XTokenLoss(mapping, kind=kind, vocabs=vocabs if kind == "exact" else None)
        output = loss_fn(logits, teacher, batch["spans"])
        output.loss.backward()
        losses[kind] = float(output.kd), logits.grad
    return losses


@pytest.mark.parametrize(("family", "pack"), [*((family, False) for family in HEADS), ("Llama", True)])
def test_every_loss_from_hidden_states_is_that_of_the_teacher_itself(
    tmp_path: Path, student: Vocab, vocab: Vocab, mapping: Mapping, family: str, *, pack: bool
) -> None:
    model = tiny(family, **HEADS[family])
    if family == "Phi":
        torch.nn.init.normal_(model.lm_head.bias)
    collate = SpanCollator(student=student, teacher=vocab, pack=pack, max_student_tokens=30, max_teacher_tokens=30)
    batch = collate(ROWS)
    segments = batch["spans"].teacher_segments
    asked = {"ids": batch["teacher_input_ids"], "mask": batch["teacher_attention_mask"], "segments": segments}
    found = {}
    for dtype in ("float32", "bfloat16"):
        write(model, tmp_path / dtype, vocab, ROWS, dtype=dtype, max_teacher_tokens=30)
        hidden = TeacherCache(tmp_path / dtype, teacher=vocab).hidden(**asked)
        found[dtype] = losses_of(mapping, (student, vocab), hidden, batch)
    side = {name: batch[f"teacher_{name}"] for name in ("input_ids", "attention_mask", "position_ids")}
    live = LiveTeacher(model).answer(side, segments if pack else None)
    for kind, (expected, gradient) in losses_of(mapping, (student, vocab), live, batch).items():
        for dtype, tolerance in (("float32", 1e-5), ("bfloat16", 1e-2)):
            kd, its = found[dtype][kind]
            assert kd == pytest.approx(expected, abs=tolerance), (kind, dtype)
            # ULD's gradient is that of sorted absolute differences: two tokens that are nearly alike exchange it.
            if (kind, dtype) != ("uld", "bfloat16"):
                torch.testing.assert_close(its, gradient, rtol=0, atol=tolerance / 50)


def test_states_of_a_model_in_bfloat16_are_kept_as_they_are(tmp_path: Path, vocab: Vocab) -> None:
    model = tiny("Llama").bfloat16()
    write(model, tmp_path, vocab, [[7, 8, 9]])
    hidden = TeacherCache(tmp_path).hidden([0])
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[7, 8, 9]])).logits
    assert torch.equal(average_logits([hidden]).logits, logits)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapted_head_is_kept_as_one_matrix(tmp_path: Path, vocab: Vocab) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["lm_head"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = peft.get_peft_model(tiny("Llama"), config).eval()
    write(model, tmp_path, vocab, [[7, 8, 9]], dtype="float32")
    cache = TeacherCache(tmp_path)
    assert cache.settings.hidden_size == 32 + 4
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[7, 8, 9]])).logits
    torch.testing.assert_close(average_logits([cache.hidden([0])]).logits, logits)


@pytest.mark.parametrize("fused", [False, True])
def test_the_model_is_left_as_it_was(tmp_path: Path, vocab: Vocab, *, fused: bool) -> None:
    model = tiny("Llama").train()
    if fused:
        fuse_head(model)
    write(model, tmp_path, vocab)
    assert isinstance(model.lm_head, FusedHead) == fused
    assert all(module.training for module in model.modules())


def test_a_shard_has_a_state_for_each_position_and_the_report_says_the_size(tmp_path: Path, vocab: Vocab) -> None:
    said: list[str] = []
    report = write(tiny("Llama"), tmp_path, vocab, space=said.append)
    positions = sum(len(row["teacher_ids"]) for row in corpus())
    table = pq.read_table(tmp_path / "shard-00001.parquet")
    assert table.column_names == ["row", "key", "ids", "states", "digest"]
    assert table.schema.field("states").type.value_type.byte_width == 2 * 32
    assert (report.positions, report.mean_rest, report.max_rest) == (positions, 0.0, 0.0)
    assert report.head_bytes == (tmp_path / HEAD).stat().st_size > 4 * WIDTH * 32
    assert said[0].startswith(
        f"{positions} positions of 68 bytes before compression, 0.0 MB, and 0.0 MB for the output"
    )
    assert said[0].endswith(" (the 64 best tokens have 392 bytes)")
    write_teacher_cache(tiny("Llama"), corpus(), tmp_path / "best", teacher=vocab, top_k=8, space=said.append)
    assert said[1] == f"{positions} positions of 56 bytes before compression, 0.0 MB"


def test_runs_that_are_repeated_shared_or_cut_off_write_the_same_files(
    tmp_path: Path, vocab: Vocab, folder: Path
) -> None:
    model, expected = tiny("Gemma2", **HEADS["Gemma2"]), files_of(folder)
    for process in ((2, 3), (0, 3), (1, 3)):
        write(model, tmp_path / "parts", vocab, process=process)
    assert files_of(tmp_path / "parts") == expected
    for lost in (HEAD, "shard-00002.parquet", "cache.json"):
        (folder / lost).unlink()
        report = write(model, folder, vocab)
        assert report.written == (lost == "shard-00002.parquet")
        assert files_of(folder) == expected


@pytest.mark.parametrize("name", [HEAD, "shard-00001.parquet"])
def test_a_damaged_file_is_refused_in_a_sentence_and_replaced(folder: Path, vocab: Vocab, name: str) -> None:
    path, expected = folder / name, files_of(folder)
    content = expected[name]

    def refusal() -> str:
        try:
            cache = TeacherCache(folder, teacher=vocab)
            cache.hidden([4, 5, 6, 7])
        except XTokenError as error:
            return str(error)
        return ""

    for at in range(0, len(content), max(len(content) // 60, 1)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x41]) + content[at + 1 :])
        said = refusal()
        assert f"{HEAD} is damaged" in said if name == HEAD else name in said or not said, at
    for cut in (0, 7, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        assert f"{name} is damaged" in refusal()
        write(tiny("Gemma2", **HEADS["Gemma2"]), folder, vocab)
        assert files_of(folder) == expected
    path.unlink()
    assert f"{name} is missing: run the teacher again over the same rows, it will be added" in refusal()


def test_another_teacher_vocabulary_or_head_is_refused(folder: Path, tmp_path: Path, vocab: Vocab) -> None:
    model = tiny("Gemma2", **HEADS["Gemma2"])
    before = files_of(folder)
    with pytest.raises(MismatchError, match="the model is another"):
        write(tiny("Gemma2", **HEADS["Gemma2"], seed=1), folder, vocab)
    with pytest.raises(MismatchError, match="the model's output head has other weights, or is in another precision"):
        write(tiny("Gemma2", **HEADS["Gemma2"]).bfloat16(), folder, vocab)
    with pytest.raises(MismatchError, match="fingerprint"):
        write(model, folder, small_vocab(normalise={"q": "k"}))
    with pytest.raises(MismatchError, match="its corpus has other rows"):
        write(model, folder, vocab, corpus(seed=1))
    with pytest.raises(MismatchError, match="keep is hidden there, top_k here"):
        write(model, folder, vocab, keep="top_k")
    with pytest.raises(MismatchError, match="dtype is bfloat16 there, float32 here"):
        write(model, folder, vocab, dtype="float32")
    assert files_of(folder) == before
    with pytest.raises(MismatchError, match="which is not small"):
        TeacherCache(folder, teacher=small_vocab(normalise={"q": "k"}))
    write(tiny("Gemma2", **{**HEADS["Gemma2"], "final_logit_softcapping": 6.0}), tmp_path / "other", vocab)
    shutil.copy(tmp_path / "other" / HEAD, folder / HEAD)
    with pytest.raises(ArtifactError, match=f"{HEAD} is damaged \\(it is not what was written\\)"):
        TeacherCache(folder).verify()


class Bent(torch.nn.Linear):
    """A head that is more than a matrix."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return super().forward(states.relu())


def bent() -> Any:
    model = tiny("Llama")
    model.lm_head = Bent(32, WIDTH, bias=False)
    return model


def shifted(by: float = 3.0) -> Any:
    """What a model does to the logits of one token is seen by comparing, not by its head."""
    model = tiny("Llama")

    def shift(_model: Any, _given: Any, output: Any) -> Any:
        if output.logits.shape[-1] == WIDTH:
            output.logits[..., 9] += by
        return output

    model.register_forward_hook(shift)
    return model


def scaled() -> Any:
    model = tiny("Llama")

    def double(_model: Any, _given: Any, output: Any) -> None:
        output.logits = 2.0 * output.logits

    model.register_forward_hook(double)
    return model


class Compiled(Causal):
    """As `torch.compile` marks what it gives."""

    _orig_mod = None


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (Causal, "expected a model with an output head, .* but Causal has none"),
        (bent, "the head must be a torch.nn.Linear, .*Bent"),
        (shifted, "its head makes logits of them that are 3 away from the model's"),
        (lambda: shifted(-float("inf")), "its head makes logits of them that are inf away"),
        (scaled, "the model makes 2 of a logit of 1 after its head, but the config says 1"),
        (Compiled, "it is compiled"),
    ],
)
def test_a_head_that_is_more_than_its_file_can_say_is_refused(
    tmp_path: Path, vocab: Vocab, make: Any, said: str
) -> None:
    with pytest.raises(OptionError, match=f"hidden states of small cannot .*: {said}.*keep='top_k'"):
        write(make(), tmp_path, vocab)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"top_k": 8}, "top_k says how many of the best tokens are kept: leave it out"),
        ({"dtype": "float16"}, "dtype is bfloat16 or float32 where keep is hidden, got 'float16'"),
        ({"keep": "states"}, "keep is top_k or hidden, got 'states'"),
        ({"keep": "top_k", "dtype": "bfloat16"}, "dtype is float16 or float32 where keep is top_k"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    tmp_path: Path, vocab: Vocab, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(OptionError, match=said):
        write(tiny("Llama"), tmp_path, vocab, **options)


def test_states_that_are_no_numbers_are_refused(tmp_path: Path, vocab: Vocab) -> None:
    model = tiny("Llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[57] = torch.nan
    with pytest.raises(OptionError, match="small gives hidden states that are no numbers"):
        write(model, tmp_path, vocab, [[7, 57]])


def test_a_call_for_what_is_not_kept_names_the_other(folder: Path, written: Path) -> None:
    with pytest.raises(OptionError, match=r"holds hidden states, .*: call `hidden`"):
        TeacherCache(folder).top_k([0])
    for call in ("hidden", "states"):
        with pytest.raises(OptionError, match=r"holds best tokens, .*: call `top_k`"):
            getattr(TeacherCache(written), call)([0])


def test_a_cache_travels_without_its_head(folder: Path) -> None:
    cache = TeacherCache(folder)
    light = len(pickle.dumps(cache))
    states = cache.hidden([0, 1]).states
    assert len(pickle.dumps(cache)) == light
    assert torch.equal(pickle.loads(pickle.dumps(cache)).hidden([0, 1]).states, states)


def test_an_empty_corpus_needs_no_head(tmp_path: Path, vocab: Vocab) -> None:
    report = write(tiny("Llama"), tmp_path, vocab, [])
    assert (report.rows, report.head_bytes, list(files_of(tmp_path))) == (0, 0, ["cache.json"])
    assert TeacherCache(tmp_path, teacher=vocab).verify().positions == 0


def test_the_head_follows_autocast_as_a_running_model_does(folder: Path) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert TeacherCache(folder).hidden([0]).states.dtype == torch.bfloat16
    assert TeacherCache(folder).hidden([0]).states.dtype == torch.float32
