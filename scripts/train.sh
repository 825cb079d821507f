#!/usr/bin/env bash
# Train: bash scripts/train.sh [configs/X.yaml] [--data-path DIR] [options of tools/train.py]
# Without arguments, it trains on the handwritten digits in lit_data, which takes about 10 minutes on 2 CPU cores.
# Repeat the command to continue an interrupted run.
# Several GPUs: GPUS=0,1,2,3 bash scripts/train.sh configs/t2t_vit_7.yaml --data-path /path/to/imagenet
# Several machines, run on each: NNODES=2 MASTER=10.0.0.1:8090 NODE_RANK=0 GPUS=0,1,2,3 bash scripts/train.sh ...
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started by sh
set -euo pipefail
[[ -n ${T2T_COMMAND:-} ]] || # scripts/aistudio.sh has set its own
  T2T_COMMAND="${NNODES:+NNODES=$NNODES MASTER=${MASTER:-} NODE_RANK=${NODE_RANK:-} }${GPUS:+GPUS=$GPUS }bash$(printf ' %q' "$0" "$@")"
export T2T_COMMAND # tools/train.py prints it as the command that continues
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"
t2t_tool train "$@"
