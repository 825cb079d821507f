#!/usr/bin/env bash
# The same as val.sh.
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/val.sh" "$@"
