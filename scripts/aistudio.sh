#!/usr/bin/env bash
# Train on Baidu AI Studio: bash scripts/aistudio.sh [configs/X.yaml] [options of tools/train.py]
# Unpacks the mounted ImageNet (data set 79807, or 114241 and 114746) to the local disk, trains t2t_vit_7 or the model of
# the config on all GPUs for at most 71 hours, and copies the best model to the folder that the platform keeps. Repeat the
# command to continue. Elsewhere: JOB_MOUNTS=/path/to/tars JOB_DATA=/fast/disk JOB_BEST=/kept bash scripts/aistudio.sh
# --help lists all options and variables.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started by sh
set -euo pipefail
export JOB_STARTED="${JOB_STARTED:-$(date +%s)}"
export T2T_SCRIPT="$0" # printed as the command that continues
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"
exec python "$T2T_ROOT/tools/aistudio_job.py" "$@"
