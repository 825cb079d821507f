#!/usr/bin/env bash
# Evaluate: bash scripts/val.sh [configs/X.yaml] [--data-path DIR] [--pretrained FILE] [options of tools/val.py]
# Without arguments, it evaluates your lit_data run, or the published run if you have none.
# Several GPUs: GPUS=0,1,2,3 bash scripts/val.sh ...
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started by sh
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"
t2t_tool val "$@"
