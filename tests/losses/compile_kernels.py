"""Compiles every kernel for an architecture of GPUs, 80 or 90, and prints the name of each: no GPU is needed for it."""

from __future__ import annotations

import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from xtoken_align.losses import triton_kernels

TENSORS = {"student": "bf16", "teacher": "bf16", "scores": "bf16", "values": "bf16", "lists": "i64", "threshold": "i64"}
"""What pointers point to; others to float32, or to int32 where they are places."""
PLACES = {"code", "member", "begin", "big", "lane", "slice_begin", "order", "source"}
POINTERS = {*TENSORS, *PLACES, "our_joint", "their_joint", "out", "found", "weight", "kept", "numbers", "entropy"}
POINTERS |= {"label_weight", "factor"}
NUMBERS = {"inverse", "temperature", "beta"}
"""Arguments that are floats; the others that are no pointers are whole numbers."""
SIZES = {"ROWS": 2, "BLOCK": 256, "LANES": 64}
FORMS: list[tuple[str, dict[str, Any]]] = [
    ("joint_masses", {"FIELD": 0}),
    ("thresholds", {"CHOSEN": 1}),
    ("sums", {"DIVERGENCE": 0, "TEMPERED": False, "LABELS": True}),
    ("close_rows", {"DIVERGENCE": 1, "TEMPERED": True, "LABELS": True}),
    ("mixtures", {}),
    ("close_mixtures", {}),
    ("gradients", {"DIVERGENCE": 1, "LABELS": True}),
    ("multiplied", {}),
]


def compile_kernel(name: str, form: dict[str, Any], architecture: int) -> None:
    """Down to the machine's code, by Triton's own assembler."""
    kernel = getattr(triton_kernels, name)
    switches = {"BOTH": False, "OUR_ALIGNED": True, "THEIR_ALIGNED": True, "OUT_ALIGNED": True}
    given = {**switches, "CHOSEN": 1, "BY_KEPT": True, "TEXT": True, **SIZES, **form}
    given = {argument: given[argument] for argument in kernel.arg_names if argument in given}
    types = dict.fromkeys(kernel.arg_names, "i32")
    types |= {argument: "fp32" for argument in types if argument in NUMBERS}
    for argument in types:
        if argument in POINTERS:
            types[argument] = "*" + TENSORS.get(argument, "i32" if argument in PLACES else "fp32")
    types |= dict.fromkeys(given, "constexpr")
    places = {argument: (place,) for place, argument in enumerate(kernel.arg_names)}
    even = {places[argument]: [["tt.divisibility", 16]] for argument in types if argument in POINTERS}
    constants = {places[argument]: value for argument, value in given.items()}
    source = ASTSource(kernel, types, constexprs=constants, attrs=even)
    assert "cubin" in triton.compile(source, target=GPUTarget("cuda", architecture, 32)).asm


if __name__ == "__main__":
    for kernel_name, kernel_form in FORMS:
        compile_kernel(kernel_name, kernel_form, int(sys.argv[1]))
        print(kernel_name)  # noqa: T201 - the test reads it
