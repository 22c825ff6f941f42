"""Every loss that the peers' own code returned comes back: value, parts and gradient, in both precisions."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from peer_cases import agrees, cases, given, links, peer_losses, student

from xtoken_align.losses.peers.nemo_rl import GoldLoss, Pairs, PKLLoss, find_pairs, gold, p_kl, total
from xtoken_align.losses.peers.tokenkit import alm, binary_ce
from xtoken_align.losses.peers.trl import ULDLoss, uld

PRECISIONS = (torch.float64, torch.float32)
SIZES = {
    "nemo_pkl": 11,
    "nemo_gold": 10,
    "nemo_total": 3,
    "suppression_identity": 4,
    "trl_uld_plain": 10,
    "trl_uld_hybrid": 22,
    "tokenkit_alm_pairs": 1,
    "tokenkit_alm_full": 4,
}


COMPARED: set[str] = set()


def by_name(*families: str) -> Any:
    found = cases(*families)
    COMPARED.update(case["id"] for case in found)
    return pytest.mark.parametrize("case", found, ids=[case["id"] for case in found])


both_precisions = pytest.mark.parametrize("dtype", PRECISIONS, ids=["float64", "float32"])


def gradient(loss: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    (slope,) = torch.autograd.grad(loss, logits)
    return slope


def per_chunk(chunks: torch.Tensor, *columns: torch.Tensor) -> list[list[float]]:
    """Rows as the file has them: sample, chunk, numbers."""
    return torch.cat([chunks.double(), *(column.double().unsqueeze(1) for column in columns)], dim=1).tolist()


def nemo_masks(options: dict[str, Any]) -> dict[str, torch.Tensor]:
    mask = torch.tensor(options["sample_mask"]) if "sample_mask" in options else given("sample_mask")
    return {"pair_valid": given("pair_valid"), "sample_mask": mask}


def the_pairs(options: dict[str, Any], dtype: torch.dtype) -> Pairs:
    inputs = peer_losses()["inputs"]
    return find_pairs(**links(dtype), shape=(inputs["V_s"], inputs["V_t"]), xtoken_loss=options["xtoken_loss"])


def run_p_kl(options: dict[str, Any], logits: torch.Tensor) -> PKLLoss:
    names = ("temperature", "reverse_kl", "vocab_topk", "exact_token_match_only")
    return p_kl(
        logits,
        given("teacher_logits", logits.dtype),
        given("student_chunk_id"),
        given("teacher_chunk_id"),
        **links(logits.dtype),
        **nemo_masks(options),
        pair_is_correct=given("pair_is_correct"),
        **{name: options[name] for name in names if name in options},
    )


def run_gold(options: dict[str, Any], logits: torch.Tensor) -> GoldLoss:
    return gold(
        logits,
        given("teacher_logits", logits.dtype),
        given("student_chunk_id"),
        given("teacher_chunk_id"),
        pairs=the_pairs(options, logits.dtype),
        **nemo_masks(options),
        **{name: options[name] for name in ("temperature", "reverse_kl", "uncommon_topk")},
    )


def run_uld(options: dict[str, Any], logits: torch.Tensor) -> ULDLoss:
    layout = peer_losses()["inputs"]["layouts"][options["layout"]]
    names = ("input_ids", "labels", "byte_offsets")
    tensors = {
        f"{side}_{name.removeprefix('input_')}": torch.tensor(layout[f"{side}_{name}"])
        for side in ("student", "teacher")
        for name in names
    }
    same = ("extended", "merge", "student_temperature", "teacher_temperature", "skip_student_eos", "skip_teacher_eos")
    return uld(
        logits,
        given("teacher_logits", logits.dtype),
        **tensors,
        matched=given("matched") if options["hybrid"] else None,
        beta=0.5 if options["beta"] is None else options["beta"],
        weights=options["weights"] and tuple(options["weights"]),
        distillation_weight=options["distillation_weight"],
        crossentropy_weight=options["crossentropy_weight"],
        **{name: options[name] for name in same},
    )


@both_precisions
@by_name("nemo_pkl")
def test_p_kl_is_nemo_rls(case: dict[str, Any], dtype: torch.dtype) -> None:
    logits = student(dtype)
    out = run_p_kl(case["options"], logits)
    assert out.loss.dtype == dtype
    assert agrees(out.loss.detach(), case["loss"], dtype)
    assert out.num_valid_chunks == case["num_valid_chunks"]
    assert out.topk_teacher_ids.tolist() == case["topk_teacher_ids"]
    assert agrees(per_chunk(out.chunks, out.chunk_kl), case["derived_per_chunk"], dtype)
    assert agrees(gradient(out.loss, logits), case["grad_student_logits"], dtype)


@both_precisions
@by_name("nemo_gold", "suppression_identity")
def test_gold_and_h_kl_are_nemo_rls(case: dict[str, Any], dtype: torch.dtype) -> None:
    logits = student(dtype)
    out = run_gold(case["options"], logits)
    assert out.loss.dtype == dtype
    assert agrees(out.loss.detach(), case["loss"], dtype)
    assert agrees(out.kl_common.detach(), case["kl_common"], dtype)
    assert agrees(out.l1_uncommon.detach(), case["l1_uncommon"], dtype)
    assert out.num_valid_chunks == case["num_valid_chunks"]
    rows = per_chunk(out.chunks, out.chunk_kl, out.chunk_l1, out.teacher_common_mass)
    assert agrees(rows, case["derived_per_chunk"], dtype)
    assert agrees(gradient(out.loss, logits), case["grad_student_logits"], dtype)


@both_precisions
@by_name("nemo_gold", "suppression_identity")
def test_common_pairs_are_nemo_rls(case: dict[str, Any], dtype: torch.dtype) -> None:
    pairs = the_pairs(case["options"], dtype)
    assert pairs.common.tolist() == case["common_pairs"]
    assert pairs.uncommon_student.tolist() == case["uncommon_student"]
    assert pairs.uncommon_teacher.tolist() == case["uncommon_teacher"]


@both_precisions
@by_name("suppression_identity")
def test_the_common_kl_pushes_every_uncommon_logit_down(case: dict[str, Any], dtype: torch.dtype) -> None:
    logits, temperature = student(dtype), case["options"]["temperature"]
    out = run_gold(case["options"], logits)
    assert agrees(per_chunk(out.chunks, out.teacher_common_mass), case["M_C"], dtype)
    probabilities = (logits.detach() / temperature).softmax(dim=-1)
    expected = torch.zeros_like(probabilities)
    positions = peer_losses()["inputs"]["student_logit_positions"]
    for (sample, chunk), mass in zip(out.chunks.tolist(), out.teacher_common_mass, strict=True):
        for position in positions[sample][chunk]:
            share = temperature * mass / (out.num_valid_chunks * len(positions[sample][chunk]))
            expected[sample, position] = probabilities[sample, position] * share
    uncommon = case["uncommon_student"]
    slope = gradient(out.loss, logits)[..., uncommon]
    assert agrees(slope, expected[..., uncommon], dtype)
    assert bool((slope >= 0).all())
    assert float(slope.max()) == pytest.approx(case["max_abs_grad_uncommon"], rel=1e-5)


@both_precisions
@by_name("nemo_total")
def test_the_sum_with_cross_entropy_is_nemo_rls(case: dict[str, Any], dtype: torch.dtype) -> None:
    logits, options = student(dtype), case["options"]
    kd = run_p_kl(options, logits) if options["kind"] == "pkl" else run_gold(options, logits)
    names = ("kl_loss_weight", "ce_loss_scale", "dynamic_loss_scaling")
    out = total(
        kd.loss,
        logits,
        given("student_input_ids"),
        token_mask=given("student_token_mask"),
        sample_mask=given("sample_mask"),
        **{name: options[name] for name in names if name in options},
    )
    assert out.loss.dtype == dtype
    assert agrees(out.loss.detach(), case["loss"], dtype)
    for part in ("kd", "ce", "kl_scale"):
        assert agrees(getattr(out, part), case[part], dtype), part
    assert agrees(gradient(out.loss, logits), case["grad_student_logits"], dtype)


@both_precisions
@by_name("trl_uld_plain", "trl_uld_hybrid")
def test_uld_and_gold_are_trls(case: dict[str, Any], dtype: torch.dtype) -> None:
    logits, samples = student(dtype), case["per_sample"]
    out = run_uld(case["options"], logits)
    assert out.loss.dtype == dtype
    assert agrees(out.loss.detach(), case["loss"], dtype)
    assert agrees(out.sample_loss, [sample["loss"] for sample in samples], dtype)
    if case["options"]["hybrid"]:
        assert agrees(out.sample_matched, [sample["matched"] for sample in samples], dtype)
        assert agrees(out.sample_unmatched, [sample["unmatched"] for sample in samples], dtype)
    assert agrees(gradient(out.loss, logits), case["grad_student_logits"], dtype)


@by_name("trl_uld_plain", "trl_uld_hybrid")
def test_groups_are_trls(case: dict[str, Any]) -> None:
    groups = run_uld(case["options"], student(torch.float64)).groups
    for sample, expected in enumerate(case["per_sample"]):
        found = [
            [runs.tokens[runs.starts[group] : runs.starts[group + 1]] for runs in (groups.student, groups.teacher)]
            for group in (groups.sample == sample).nonzero().flatten().tolist()
        ]
        firsts = [tokens[0] for tokens in found[0]]
        counted = [[(tokens - first).tolist() for tokens, first in zip(pair, firsts, strict=True)] for pair in found]
        assert counted == expected["groups"]


@both_precisions
@by_name("tokenkit_alm_pairs")
def test_binary_ce_is_tokenkits(case: dict[str, Any], dtype: torch.dtype) -> None:
    columns = {name: index for index, name in enumerate(case["columns"])}
    for row in case["rows"]:
        teacher, guess = (torch.tensor(row[columns[name]], dtype=dtype) for name in ("l_teacher", "l_student"))
        guess.requires_grad_()
        value = binary_ce(teacher, guess, tau=row[columns["tau"]])
        assert agrees(value.detach(), row[columns["binary_ce"]], dtype), row
        assert agrees(gradient(value, guess), row[columns["d_binary_ce_d_l_student"]], dtype), row


@both_precisions
@by_name("tokenkit_alm_full")
@pytest.mark.parametrize("own_ids", [True, False], ids=["its chunk ids", "all chunk ids and a mask"])
def test_alm_is_tokenkits(case: dict[str, Any], dtype: torch.dtype, own_ids: bool) -> None:
    logits, prefix = student(dtype), "alm_" if own_ids else ""
    out = alm(
        logits,
        given("teacher_logits", dtype),
        given(f"{prefix}student_chunk_id"),
        given(f"{prefix}teacher_chunk_id"),
        student_ids=given("student_input_ids"),
        teacher_ids=given("teacher_input_ids"),
        pair_valid=None if own_ids else given("pair_valid"),
        tau=case["options"]["tau"],
        alm_mode=case["options"]["alm_mode"],
        student_space_ids=given("alm_student_space_ids"),
        teacher_space_ids=given("alm_teacher_space_ids"),
    )
    assert out.loss.dtype == dtype
    assert agrees(out.loss.detach(), case["loss"], dtype)
    assert out.num_chunks == case["num_chunks"]
    rows = per_chunk(out.chunks, out.teacher_log_likelihood, out.student_log_likelihood, out.chunk_ce)
    assert agrees(rows, case["derived_per_chunk"], dtype)
    assert agrees(gradient(out.loss, logits), case["grad_student_logits"], dtype)


def test_every_case_is_run() -> None:
    assert Counter(case["family"] for case in cases()) == SIZES
    assert {case["id"] for case in cases()} == COMPARED
    assert len(COMPARED) == sum(SIZES.values()) == 65


def test_every_part_of_a_case_is_compared() -> None:
    compared = {
        *("loss", "grad_student_logits", "num_valid_chunks", "num_chunks", "topk_teacher_ids", "derived_per_chunk"),
        *("kl_common", "l1_uncommon", "common_pairs", "uncommon_student", "uncommon_teacher", "M_C"),
        *("kd", "ce", "kl_scale", "per_sample", "rows", "max_abs_grad_uncommon"),
    }
    # Names, the peer's single-precision value, and how far the identity missed the peer's gradient.
    described = {"id", "family", "options", "columns", "loss_fp32", "max_abs_diff_identity"}
    assert set().union(*cases()) == compared | described
    assert set().union(*(sample for case in cases() for sample in case.get("per_sample", ()))) == {
        *("loss", "matched", "unmatched", "groups")
    }
