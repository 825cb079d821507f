# shellcheck shell=bash
# Finds or creates a Python environment with PaddlePaddle and puts it first on PATH.
# Source it from bash or zsh: `source scripts/env.sh`. The other scripts do so. `bash scripts/env.sh --dry-run` only prints
# what it would do.
#
# An existing environment with PaddlePaddle 2.6.2 or newer is used as it is: that of `python`, else one in /opt/conda/envs
# (AI Studio). Otherwise .venv is created in the repository from requirements.txt, with the wheel that
# tools/t2t_vit/common/wheels.py chooses for the NVIDIA cards of this machine.
#
# If one of these variables is set, a separate environment is created, even if PaddlePaddle is already installed:
# T2T_ENV=FOLDER        folder of the environment
# PADDLE_PACKAGE=WORDS  what pip installs: "paddlepaddle-gpu==3.3.1 -i https://www.paddlepaddle.org.cn/packages/stable/cu126/"

if [ -n "${ZSH_VERSION:-}" ]; then # bash creates the environment, zsh activates it
  eval 'T2T_PATH=$(bash "${(%):-%x}" --path)' && export PATH="$T2T_PATH"
  return
elif [ -z "${BASH_VERSION:-}" ]; then
  echo "error: this shell is neither bash nor zsh: run scripts with bash, for example bash scripts/train.sh" >&2
  return 1 2>/dev/null || exit 1
fi

T2T_ROOT=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
_t2t_dry="" # 1: only print what would be done
# Folders of AI Studio. Tests replace them.
: "${T2T_AISTUDIO:=/home/aistudio}" "${T2T_CONDA:=/opt/conda/envs}"

# --- Existing environments ---

_t2t_look() { # _t2t_look PYTHON: prints "complete", "missing NAME ...", "old ..." or nothing; does not import paddle
  "$1" - <<'PY' 2>/dev/null
import os, re, sys
from importlib.util import find_spec
sys.path[:] = [path for path in sys.path if path]  # not the current folder
paddle = find_spec("paddle")
if paddle is None or not paddle.origin:
    sys.exit()
text = open(os.path.join(os.path.dirname(paddle.origin), "version", "__init__.py")).read()
version = re.search(r"full_version *= *'(.*?)'", text).group(1)
numbers = [int(number) for number in re.findall(r"\d+", version)[:3]]
missing = [name for name in ("yacs", "yaml", "numpy", "PIL", "tqdm", "scipy") if find_spec(name) is None]
if sys.version_info < (3, 9):
    print("old Python %d.%d, below 3.9" % sys.version_info[:2])
elif [0, 0, 0] < numbers < [2, 6, 2]:  # 0.0.0 is a nightly build
    print("old PaddlePaddle %s, below 2.6.2" % version)
else:
    print("missing " + " ".join(missing) if missing else "complete")
PY
}

_t2t_add() { # _t2t_add PYTHON NAME...: install missing packages into an environment with PaddlePaddle
  local python=$1 user=${PIP_USER:-} log
  log=$(mktemp) || return
  echo "installing ${*:2} into $python ..." >&2
  # Keep the installed Paddle and its NumPy.
  "$python" -c 'import importlib.metadata as m; print("numpy==" + m.version("numpy"))' >"$log.numpy" 2>/dev/null
  (
    # pip refuses `user = true` (AI Studio) in a virtual environment.
    "$python" -c 'import sys; sys.exit(sys.prefix == sys.base_prefix)' && user=0
    grep -v '^paddlepaddle\|^numpy' "$T2T_ROOT/requirements.txt" |
      PIP_USER=$user "$python" -m pip --disable-pip-version-check install --quiet -r /dev/stdin -c "$log.numpy"
  ) 2>"$log" >&2 && rm -f "$log" "$log.numpy" && return
  echo "error: ${*:2} cannot be installed into $python: $(_t2t_why "$log"). Install requirements.txt there," \
    "or set T2T_ENV=FOLDER for a separate environment" >&2
  rm -f "$log" "$log.numpy"
  return 1
}

_t2t_found() { # _t2t_found PYTHON: use it if it has PaddlePaddle; else status 1, with a reason in T2T_TOO_OLD
  local found missing
  found=$(_t2t_look "$1")
  case $found in
    complete) [[ -z $_t2t_dry ]] || echo "python: $(command -v "$1"), used as it is" ;;
    missing*)
      read -r -a missing <<<"${found#missing }"
      if [[ -n $_t2t_dry ]]; then
        echo "python: $(command -v "$1"), with ${missing[*]} added"
      else
        _t2t_add "$1" "${missing[@]}" || return 2
      fi
      ;;
    *)
      [[ -z $found ]] || T2T_TOO_OLD+="note: $1 has ${found#old }: not used"$'\n'
      return 1
      ;;
  esac
}

_t2t_enter() { # _t2t_enter FOLDER: put its bin/ first on PATH
  case "$PATH:" in "$1/bin:"*) ;; *) export PATH="$1/bin:$PATH" ;; esac
}

# --- A new environment ---

_t2t_folder() { # prints its folder
  local cache=${XDG_CACHE_HOME:-${HOME:-/nowhere}/.cache}/t2t_vit
  if [[ -n ${T2T_ENV:-} ]]; then
    case $T2T_ENV in /*) echo "$T2T_ENV" ;; *) echo "$PWD/$T2T_ENV" ;; esac
  elif [[ $T2T_ROOT/ == "$T2T_AISTUDIO"/* ]]; then
    # AI Studio saves the home folder at the end of a session; many or large files disturb that.
    echo "${TMPDIR:-/tmp}/t2t_vit-$(id -u)"
  elif [[ -d $T2T_ROOT/.venv || -w $T2T_ROOT ]]; then
    echo "$T2T_ROOT/.venv"
  elif mkdir -p "$cache" 2>/dev/null && [[ -w $cache ]]; then # read-only repository
    echo "$cache/venv"
  else
    echo "${TMPDIR:-/tmp}/t2t_vit-$(id -u)"
  fi
}

_t2t_safe() { # _t2t_safe FOLDER: status 1 for a folder of another user in /tmp
  [[ $1 != "${TMPDIR:-/tmp}"/* || ! -e $1 || -O $1 ]]
}

_t2t_ready() { # _t2t_ready FOLDER: status 0 if it is complete and up to date, with the PaddlePaddle of PADDLE_PACKAGE
  _t2t_safe "$1" && cmp -s "$T2T_ROOT/requirements.txt" "$1/installed.txt" || return
  [[ -z ${PADDLE_PACKAGE:-} || $PADDLE_PACKAGE == "$(cat "$1/package.txt" 2>/dev/null)" ]] || return
  "$1/bin/python" -c '' 2>/dev/null # its base Python may have been removed
}

_t2t_base_python() { # prints a Python for which Paddle has wheels
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

_t2t_room() { # _t2t_room FOLDER MB: checks the free space
  local free
  free=$(df -Pk "$1" 2>/dev/null | awk 'NR == 2 { print int($4 / 1024) }')
  [[ -z $free || $free -ge $2 ]] || { _t2t_no "$1 has $free MB free, but the environment needs $2 MB"; return 1; }
}

_t2t_why() { # _t2t_why LOG: short reason why pip failed
  if grep -qi 'no space left' "$1"; then
    echo "the disk is full"
  elif grep -qi 'NewConnectionError\|NameResolutionError\|ConnectTimeout\|ReadTimeout\|ProxyError\|SSLError' "$1"; then
    echo "the package index cannot be reached (set PIP_INDEX_URL to a mirror, https_proxy to a proxy)"
  else
    grep '^ *ERROR\|^error' "$1" | tail -n 1 | cut -c 1-300 | grep . || tail -n 1 "$1"
  fi
}

_t2t_pip() { # _t2t_pip FOLDER WORD...: pip install into this environment
  # Override pip settings of this machine that would install to another place or fail.
  local -x PIP_USER=0 PIP_TARGET='' PIP_PREFIX='' PIP_ROOT='' PIP_REQUIRE_VIRTUALENV=0
  local options=(--disable-pip-version-check)
  [[ ! -d $T2T_AISTUDIO ]] || options+=(--no-cache-dir)
  [[ -t 2 ]] || options+=(--quiet)
  "$1/bin/python" -m pip "${options[@]}" install "${@:2}" >&2 2>>"$1/install.log"
}

_t2t_fill() { # _t2t_fill FOLDER PYTHON WORDS: create the environment with the PaddlePaddle of WORDS; may be repeated after a failure
  local env=$1 clear=() others=("$1/requirements.txt")
  # An environment cannot contain two builds of PaddlePaddle.
  [[ ! -f $env/package.txt || $3 == "$(cat "$env/package.txt")" ]] || clear=(--clear)
  "$2" -m venv ${clear[@]+"${clear[@]}"} "$env" >&2 || return
  : >"$env/install.log"
  printf '%s\n' "$3" >"$env/package.txt"
  [[ -z ${PADDLE_PACKAGE:-} ]] || printf '%s\n' "$3" >"$env/chosen.txt"
  # Not quoted, because the words may include pip options.
  # shellcheck disable=SC2086
  _t2t_pip "$env" $3 || return
  grep -v '^paddlepaddle' "$T2T_ROOT/requirements.txt" >"$env/requirements.txt"
  # PaddlePaddle 2 was compiled against NumPy 1.
  ! ls -d "$env"/lib/python*/site-packages/paddlepaddle*-2.* >/dev/null 2>&1 || others+=("numpy<2")
  _t2t_pip "$env" -r "${others[@]}" || return
  if [[ $(_t2t_look "$env/bin/python") != complete ]]; then
    echo "error: pip installed to another place, see \`pip config list\` (target, prefix)" >>"$env/install.log"
    return 1
  fi
  cp "$T2T_ROOT/requirements.txt" "$env/installed.txt"
}

_t2t_make() { # _t2t_make FOLDER PYTHON WORDS MB SIZE: the part of _t2t_install that holds the lock
  local hint=""
  ! _t2t_ready "$1" || return 0
  _t2t_room "$1" "$4" || return
  echo "creating $1 with $3 (downloads about $5 once) ..." >&2
  _t2t_fill "$1" "$2" "$3" && return
  [[ $3 != *paddlepaddle.org.cn* ]] || hint=' docs/troubleshooting.md names a last resort from PyPI.'
  echo "error: $1 is not complete: $(_t2t_why "$1/install.log"). Repeat the command to try again; the output of pip is in" \
    "$1/install.log.$hint" >&2
  return 1
}

_t2t_install() { # _t2t_install FOLDER
  local env=$1 base words room=1500 size="250 MB"
  base=$(_t2t_base_python) || return
  # The user's choice is kept when requirements.txt changes.
  words=${PADDLE_PACKAGE:-$(cat "$env/chosen.txt" 2>/dev/null || "$base" "$T2T_ROOT/tools/t2t_vit/common/wheels.py")} || return
  [[ $words != *gpu* ]] || room=10000 size="4 GB"
  : "${words:=$(grep '^paddlepaddle' "$T2T_ROOT/requirements.txt")}"
  if [[ -n $_t2t_dry ]]; then
    printf 'environment: %s\npython: %s\npip install %s\n' "$env" "$base" "$words"
    return
  fi
  mkdir -p "$env" 2>/dev/null || true
  _t2t_safe "$env" && [[ -w $env ]] || { _t2t_no "$env is not writable or belongs to another user"; return 1; }
  [[ -f $env/pyvenv.cfg || -f $env/.lock || -z $(ls -A "$env") ]] || { _t2t_no "$env contains other files"; return 1; }
  ( # one process at a time, because several machines may share a home folder
    ! command -v flock >/dev/null || flock 9 || true
    _t2t_make "$env" "$base" "$words" "$room" "$size"
  ) 9>"$env/.lock"
}

_t2t_no() { # _t2t_no REASON: the folder of the environment cannot be used
  echo "error: $1; set T2T_ENV=FOLDER to put the environment elsewhere" >&2
}

_t2t_env() {
  local env python status T2T_TOO_OLD="" own=${T2T_ENV:-}${PADDLE_PACKAGE:-}
  env=$(_t2t_folder)
  if [[ -z $own && $(command -v python) != "$env/bin/python" ]]; then
    _t2t_found python && return
    [[ $? == 1 ]] || return 1
  fi
  if _t2t_ready "$env"; then
    _t2t_enter "$env"
    return
  fi
  if [[ -z $own ]]; then
    for python in "$T2T_CONDA"/*/bin/python; do
      [[ -x $python ]] || continue
      status=0
      _t2t_found "$python" || status=$?
      [[ $status != 2 ]] || return 1
      [[ $status != 0 ]] || { _t2t_enter "${python%/bin/python}"; return; }
    done
  fi
  printf %s "$T2T_TOO_OLD" >&2
  _t2t_install "$env" || return
  [[ -n $_t2t_dry ]] || _t2t_enter "$env"
}

# t2t_tool NAME [CONFIG.yaml] [OPTION...]: run tools/NAME.py. GPUS ("0,1,2,3") chooses the GPUs. For several machines, run
# the same command on each with NNODES (how many), MASTER (HOST:PORT of the first) and NODE_RANK (0 on the first, 1, 2, ...
# on the others).
t2t_tool() {
  local tool="$T2T_ROOT/tools/$1.py" config=()
  shift
  if [[ ${1:-} != -* && ${1:-} =~ \.ya?ml$ ]]; then
    config=(--config "$1")
    shift
  fi
  local launcher=()
  [[ -z ${GPUS:-}${NNODES:-} ]] || launcher=("$T2T_ROOT/tools/launch.py")
  # exec, so that Python gets the signals sent to the script. Before bash 4.4, an empty array is an error under set -u.
  exec python ${launcher[@]+"${launcher[@]}"} "$tool" ${config[@]+"${config[@]}"} "$@"
}

if [[ ${BASH_SOURCE[0]} != "$0" ]]; then
  _t2t_env
else
  case ${1:-} in
    --dry-run) _t2t_dry=1 ;;
    --path | "") ;;
    *) echo "usage: bash scripts/env.sh [--dry-run]" >&2; exit 2 ;;
  esac
  _t2t_env || exit
  case ${1:-} in
    --path) printf '%s\n' "$PATH" ;;
    "") echo "python: $(command -v python); activate its environment with: source scripts/env.sh" ;;
  esac
fi
