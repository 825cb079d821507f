#!/usr/bin/env bash
# Unpack ImageNet or CIFAR: bash scripts/unpack.sh ARCHIVE... --output DIR [options of tools/unpack.py]
# Repeat the command to continue after an interruption.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started by sh
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"
t2t_tool unpack "$@"
