#!/usr/bin/env bash
# Installs the lowest versions that pyproject.toml allows and runs the main commands and a training step with them.
# Needs Python 3.11 and pip; uv chooses the versions. `scripts/lowest.sh core` leaves training out.
set -euo pipefail
root=$(CDPATH="" cd -- "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/environment.sh
source "$root/scripts/environment.sh"
cd "$root"

# install_lowest FOLDER EXTRAS OPTIONS...: the lowest versions of what is asked for directly; what those need is as usual.
install_lowest() {
    local folder=$1 extras=$2
    shift 2
    make_environment "$folder"
    "$folder/bin/python" -m pip install -qq uv
    rm -rf "$root/build"
    "$folder/bin/python" -m uv pip install -q --python "$folder/bin/python" --resolution lowest-direct "$@" "$root[$extras]"
}

environment=$root/.venv-lowest
echo "== The lowest versions, without training: ${environment#"$root"/}"
install_lowest "$environment" demo,chat,report,corpus,export
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
xtoken() { "$environment/bin/xtoken-align" "$@" > /dev/null; }
export XTOKEN_ALIGN_STORE=$place/store
printf 'It rose 201 procent.\nIn 2026 it fell.\n' > corpus.txt
xtoken build qwen3 llama-3
xtoken build mistral-tekken llama-3
xtoken inspect llama-3--qwen3 --corpus corpus.txt --html report.html
xtoken show llama-3--qwen3 201
xtoken diff llama-3--qwen3 llama-3--mistral-tekken
xtoken compat llama-3 llama-3.1
xtoken align qwen3 llama-3 corpus.txt
xtoken export llama-3--qwen3 --format parquet -o links.parquet
xtoken export llama-3--qwen3 --format safetensors -o w.safetensors
xtoken import w.safetensors qwen3 llama-3
xtoken verify
xtoken list
[ "${1-}" = core ] && exit

environment=$root/.venv-lowest-train
echo "== The lowest versions, with training: ${environment#"$root"/}"
cd "$root"
install_lowest "$environment" train,lora --torch-backend cpu
cd "$place"
"$environment/bin/python" -c "
import sys
from pathlib import Path
sys.path.insert(0, '$root/docs')
from documented import write_example
write_example(Path())
"
xtoken distill run.yaml
