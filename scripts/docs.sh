#!/usr/bin/env bash
# Builds the documentation into docs/_build/html; every warning is an error. Needs Python 3.11+ and pip; no Hub, no GPU.
# Arguments go to sphinx-build.
set -euo pipefail
root=$(CDPATH="" cd -- "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/environment.sh
source "$root/scripts/environment.sh"
cd "$root"

# The environment of the tests has what the documentation needs; without one, a smaller one of its own.
environment=$root/.venv-test
if ! "$environment/bin/python" -c 'import sphinx, xtoken_align' > /dev/null 2>&1; then
    environment=$root/.venv-docs
    echo "== Environment: ${environment#"$root"/}"
    make_environment "$environment"
    install_into "$environment" "$root[docs]"
fi
"$environment/bin/sphinx-build" -W --keep-going -q -b html docs docs/_build/html "$@"
echo "== Written to docs/_build/html/index.html"
