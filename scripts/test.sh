#!/usr/bin/env bash
# Create the environment, check the style and run the tests: bash scripts/test.sh [options of pytest]
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started by sh
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"
cd "$T2T_ROOT"
python -m pip --disable-pip-version-check install --quiet -r tests/requirements.txt
python -m ruff check .
python -m ruff format --check .
python -m pytest "$@"
