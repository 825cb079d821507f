#!/usr/bin/env bash
# Train: bash scripts/train.sh [configs/X.yaml] [--data-path DIR] [options of tools/train.py]
# Without arguments: the handwritten digits of lit_data, a few minutes on 2 CPU cores.
# Several GPUs: GPUS=0,1,2,3 bash scripts/train.sh configs/t2t_vit_7.yaml --data-path /path/to/imagenet
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"
t2t_tool train "$@"
