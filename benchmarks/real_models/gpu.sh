#!/usr/bin/env bash
# The experiment at a hundred times the tokens on one H100 or H200, in about 8 minutes.
#
#     OUT=FOLDER bash benchmarks/real_models/gpu.sh WORK
#
# WORK holds everything it reads, so that it runs where there is no network: the GGUF files WORK/smollm2/smollm2.gguf and
# WORK/gemma-3/gemma-3.gguf, Django's source distribution, and, where the packages of the project are not installed, a
# folder `wheels`. `python benchmarks/real_models/run.py --quick --work WORK` on another machine fills it.
# results.json is written to OUT after every arm: what is there when the time is over is whole.
set -euo pipefail
work=${1:?give the folder that run.py --work filled}
out=${OUT:-benchmarks/real_models/gpu}
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
mkdir -p "$out"
python=${PYTHON:-python3}
if ! "$python" -c "import xtoken_align, transformers, gguf" 2> /dev/null && [ -d "$work/wheels" ]; then
    "$python" -m pip install -q --no-index --find-links "$work/wheels" -e ".[train,gguf,report,demo]"
fi
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader || true
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=8
timeout "${LIMIT:-480}" "$python" -W ignore "$here/run.py" --gpu --pairs transfer families --seeds 0 --out "$out" --work "$work" || [ $? = 124 ]
