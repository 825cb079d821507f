# Finds or makes a Python environment with PaddlePaddle and puts it first on PATH.
# Source it: `source scripts/env.sh`; the other scripts do.
#
# An environment in which paddle is installed is used as it is (AI Studio). Otherwise .venv is made in the repository
# from requirements.txt, with paddlepaddle-gpu where nvidia-smi finds a GPU. PADDLE_PACKAGE names another build, for
# example PADDLE_PACKAGE="paddlepaddle-gpu==3.3.1 -i https://www.paddlepaddle.org.cn/packages/stable/cu126/".

T2T_ROOT=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

_t2t_has() { # _t2t_has PYTHON MODULE...: can it import them?
  "$1" - "${@:2}" >/dev/null 2>&1 <<'PY'
import importlib.util, sys
sys.exit(any(importlib.util.find_spec(name) is None for name in sys.argv[1:]))
PY
}

_t2t_activate() { # _t2t_activate: enter .venv
  export VIRTUAL_ENV="$T2T_ROOT/.venv"
  case "$PATH:" in "$VIRTUAL_ENV/bin:"*) ;; *) export PATH="$VIRTUAL_ENV/bin:$PATH" ;; esac
}

_t2t_base_python() { # prints a Python that Paddle has wheels for
  local candidate
  for candidate in python3.11 python3.12 python3.10 python3.9 python3; do
    if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(not (3, 9) <= sys.version_info < (3, 13))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  echo "error: no Python 3.9 to 3.12 with the venv module found; install one (Debian: apt install python3-venv)" >&2
  return 1
}

_t2t_install() { # fills .venv; may be cut and run again
  local base
  base=$(_t2t_base_python) || return
  echo "making $T2T_ROOT/.venv with PaddlePaddle (a download of about 250 MB, once) ..." >&2
  "$base" -m venv "$T2T_ROOT/.venv" || return
  local pip=("$T2T_ROOT/.venv/bin/python" -m pip --disable-pip-version-check install --quiet)
  local plain="$T2T_ROOT/.venv/requirements.txt"
  if [[ -n ${PADDLE_PACKAGE:-} ]]; then
    # Unquoted: the variable may hold pip options.
    # shellcheck disable=SC2086
    "${pip[@]}" $PADDLE_PACKAGE || return
    grep -v '^paddlepaddle' "$T2T_ROOT/requirements.txt" >"$plain"
  elif command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
    # The newest GPU build on PyPI, 2.6.2 (CUDA 11.8), was compiled against NumPy 1.
    sed -e 's/^paddlepaddle.*/paddlepaddle-gpu>=2.6.2,<3.4/' -e 's/^numpy.*/numpy>=1.23,<2/' \
      "$T2T_ROOT/requirements.txt" >"$plain"
  else
    cp "$T2T_ROOT/requirements.txt" "$plain"
  fi
  "${pip[@]}" -r "$plain" || return
  cp "$T2T_ROOT/requirements.txt" "$T2T_ROOT/.venv/installed.txt"
}

_t2t_env() {
  if [[ $(command -v python) != "$T2T_ROOT/.venv/bin/python" ]] && _t2t_has python paddle; then
    _t2t_has python yacs yaml numpy PIL tqdm scipy && return
    echo "adding what is missing beside the installed PaddlePaddle ..." >&2
    # Paddle and the NumPy that it works with stay as they are.
    grep -v '^paddlepaddle\|^numpy' "$T2T_ROOT/requirements.txt" |
      python -m pip --disable-pip-version-check install --quiet -r /dev/stdin
    return
  fi
  if ! cmp -s "$T2T_ROOT/requirements.txt" "$T2T_ROOT/.venv/installed.txt"; then
    _t2t_install || { echo "error: the environment could not be made; see the lines above" >&2; return 1; }
  fi
  _t2t_activate
}

# t2t_tool NAME [CONFIG.yaml] [OPTION...]: run tools/NAME.py, on the cards that GPUS names ("0,1,2,3") if it is set, and
# together with other machines, each of which is given the same command, if NNODES (how many), MASTER (HOST:PORT of
# the first) and NODE_RANK (0 on the first, 1, 2, ... on the others) are set.
t2t_tool() {
  local tool="$T2T_ROOT/tools/$1.py" config=()
  shift
  if [[ ${1:-} == *.yaml || ${1:-} == *.yml ]]; then
    config=(--config "$1")
    shift
  fi
  local launcher=()
  [[ -z ${GPUS:-}${NNODES:-} ]] || launcher=("$T2T_ROOT/tools/launch.py")
  # exec: a signal to the script is one to Python. Before bash 4.4, set -u calls an empty array unbound.
  exec python ${launcher[@]+"${launcher[@]}"} "$tool" ${config[@]+"${config[@]}"} "$@"
}

_t2t_env
