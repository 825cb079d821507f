#!/usr/bin/env bash
# Classify pictures: bash scripts/predict.sh [configs/X.yaml] [IMAGE|FOLDER|GLOB ...] [options of tools/predict.py]
# Without arguments: an image of lit_data with your run of lit_data, else the published one.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started by sh
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"
t2t_tool predict "$@"
