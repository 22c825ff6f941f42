#!/usr/bin/env bash
# Makes an environment with everything the tests need, then runs lint, types and import contracts, builds the documentation
# and runs the tests. Needs Python 3.11+ and pip. Arguments go to pytest.
set -euo pipefail
root=$(CDPATH="" cd -- "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/environment.sh
source "$root/scripts/environment.sh"
cd "$root"

environment=$root/.venv-test
echo "== Environment: ${environment#"$root"/}"
make_environment "$environment"
# The wheel, not the checkout, is what gets tested: it shows that the package list and the package data are whole,
# and it is where the import contracts find the command line under its installed name.
install_into "$environment" "$root[test,lint]"
bin=$environment/bin

echo "== Lint"
"$bin/ruff" check .
"$bin/ruff" format --check .
echo "== Types"
# From another folder here and below, so that the installed package is checked and not the checkout.
(cd tests && "$bin/mypy" --config-file "$root/pyproject.toml" --cache-dir "$root/.mypy_cache" -p xtoken_align)
echo "== Project file and import contracts"
"$bin/validate-pyproject" pyproject.toml
(cd tests && "$bin/lint-imports" "$root/pyproject.toml" --no-cache)
echo "== Documentation"
"$bin/sphinx-build" -W --keep-going -E -q -b html docs docs/_build/html
echo "== Tests"
XTOKEN_ALIGN_TEST_SITE=$root/docs/_build/html "$bin/pytest" -n 2 --dist worksteal "$@"
