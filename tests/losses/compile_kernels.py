"""Compiles every kernel for an architecture of GPUs, 80 or 90, and prints what each needs: no GPU is needed for it."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from xtoken_align.losses import kernels

HALF = {"student", "teacher", "values", "logits"}
PLACES = {
    "lists": "i64",
    "threshold": "i64",
    "near": "i64",
    "cells": "i64",
    "other_cells": "i64",
    "ours": "i64",
    "theirs": "i64",
}
PLACES |= dict.fromkeys(("table", "pieces", "token_begin", "program", "levels", "outcome_of"), "i64")
PLACES |= {"live": "i8", "other_live": "i8", "role": "i8"}
PLACES |= {"bins": "i32", "other_bins": "i32", "signs": "i8", "other_signs": "i8", "sums": "fp64"}
PLACES |= dict.fromkeys(("code", "tokens", "order", "work", "source"), "i32")
FLOATS = {
    "masses",
    "found",
    "weight",
    "kept",
    "numbers",
    "entropy",
    "factors",
    "factor",
    "loss",
    "out",
    "part",
    "coefficient",
    "other_out",
    "slopes",
}
"""What pointers point to: bfloat16, places, or float32."""
NUMBERS = {"inverse", "temperature", "beta"}
"""Arguments that are floats; the others that are no pointers are whole numbers."""
SIZES = {"ROWS": 2, "BLOCK": 2048, "LANES": 256, "OUTCOMES": 256}
FORMS: list[tuple[str, dict[str, Any]]] = [
    ("copies", {}),
    ("impossible", {}),
    ("joint_masses", {}),
    ("thresholds", {"CHOSEN": 1, "SAMPLE": 8192, "NEAR": 4096}),
    ("sums", {"DIVERGENCE": 0, "TEMPERED": False}),
    ("close_rows", {"DIVERGENCE": 1, "TEMPERED": True, "BLOCK": 128}),
    ("mixtures", {}),
    ("close_mixtures", {"BLOCK": 128}),
    ("gradients", {"DIVERGENCE": 1}),
    ("totals", {"BLOCK": 1024}),
    ("level_masses", {"tokens": "*i64"}),
    ("level_values", {"DIVERGENCE": 1}),
    ("spoken_gradients", {}),
    ("restricted_gradients", {"tokens": "*i64"}),
    ("multiplied", {}),
    ("normalisers", {}),
    ("probabilities", {"BLOCKS": 64}),
    ("rank_gradients", {"ADDS": True}),
    ("counted_bins", {"values": "*fp32"}),
    ("signs_of_bins", {}),
    ("signs_of_values", {"values": "*fp32", "out": "*i8"}),
]


def compile_kernel(name: str, form: dict[str, Any], architecture: int) -> bytes:
    """Down to the machine's code, by Triton's own assembler."""
    form = {
        "num_warps": 8 if name == "level_masses" or "OUR_ALIGNED" in getattr(kernels, name).arg_names else 4,
        **form,
    }
    kernel = getattr(kernels, name)
    switches = {"BOTH": False, "OUR_ALIGNED": True, "THEIR_ALIGNED": True, "OUT_ALIGNED": True}
    given = {
        **switches,
        "CHOSEN": 1,
        "BY_KEPT": True,
        "TEXT": True,
        "PLAUSIBLY": True,
        "LABELS": True,
        "COPIES": True,
        **SIZES,
        **form,
    }
    pointers = {**dict.fromkeys(HALF, "bf16"), **PLACES, **dict.fromkeys(FLOATS, "fp32")}
    given = {argument: given[argument] for argument in kernel.arg_names if argument in given.keys() - pointers.keys()}
    types = dict.fromkeys(kernel.arg_names, "i32")
    types |= {argument: "*" + pointers[argument] for argument in types if argument in pointers}
    types |= {argument: "fp32" for argument in types if argument in NUMBERS}
    types |= {argument: form[argument] for argument in types if argument in form and argument in pointers}
    types |= dict.fromkeys(given, "constexpr")
    places = {argument: (place,) for place, argument in enumerate(kernel.arg_names)}
    # Real vocabularies are padded to such widths.
    even = {places[argument]: [["tt.divisibility", 16]] for argument in types if argument in {*pointers, "width"}}
    constants = {places[argument]: value for argument, value in given.items()}
    source = ASTSource(kernel, types, constexprs=constants, attrs=even)
    options = {"num_warps": form["num_warps"]}
    made: bytes = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options).asm["cubin"]
    return made


def resources(code: bytes) -> str:
    """The registers of a thread, and the bytes that it keeps in memory because it has not enough of them."""
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not program.exists():
        return ""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        told = subprocess.run([program, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", told)
    return f"{found[1]} registers, {found[2]} bytes" if found else ""


if __name__ == "__main__":
    for kernel_name, kernel_form in FORMS:
        made = compile_kernel(kernel_name, kernel_form, int(sys.argv[1]))
        print(kernel_name, resources(made))  # noqa: T201 - the test reads it
