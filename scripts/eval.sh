#!/usr/bin/env bash
# The same as val.sh.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started by sh
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/val.sh" "$@"
