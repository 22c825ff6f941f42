#!/usr/bin/env bash
# Checks and measures the losses on a machine with a GPU, in at most eight minutes; nothing is fetched.
#
#     benchmarks/gpu.sh [--tiny]
#
# Needs the package with its extras [test] and, for some figures, liger-kernel. Figures go to standard output and to
# $OUT/gpu.jsonl as they come; OUT is a folder, by default this one, PYTHON the interpreter. Options go to gpu.py. With
# --tiny everything runs on a processor, in Triton's interpreter.
set -uo pipefail
here=$(CDPATH="" cd -- "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/.."
python=${PYTHON:-python3} out=${OUT:-$here} tiny="" failed=0
[[ " $* " == *" --tiny "* ]] && tiny=yes

echo "== Tests"
if [[ $tiny ]]; then
    echo "the test suite runs them without a GPU"
else
    # Most of the time is that of compiling, which several processes share.
    XTOKEN_ALIGN_TEST_WORLDS=40 timeout 150 "$python" -m pytest -n 8 -q -p no:cacheprovider \
        tests/losses/test_triton.py tests/losses/test_sorting.py || failed=1
    timeout 60 "$python" -m pytest -n 4 -q -p no:cacheprovider tests/losses/test_cuda_losses.py \
        -k "half_precision or wait or rounding_alone or memory_of_a_block or captured or launches" || failed=1
fi

echo "== Memory accesses"
if [[ ! $tiny ]] && command -v compute-sanitizer >/dev/null; then
    timeout 50 compute-sanitizer --error-exitcode 1 "$python" -m pytest -n 0 -q -x -p no:cacheprovider \
        tests/losses/test_triton.py tests/losses/test_sorting.py -k "one_row or leave_out or counting_equal" || failed=1
else
    echo "compute-sanitizer is not installed"
fi

echo "== Figures"
timeout 210 "$python" benchmarks/gpu.py --seconds 180 --out "$out/gpu.jsonl" "$@" || failed=1
exit "$failed"
