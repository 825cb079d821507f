#!/usr/bin/env bash
# Classify pictures: bash scripts/predict.sh [configs/X.yaml] [IMAGE|FOLDER|GLOB ...] [options of tools/predict.py]
# Without arguments, it classifies an image of lit_data with your lit_data run, or with the published run if you have none.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started by sh
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"
t2t_tool predict "$@"
