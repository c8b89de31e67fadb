#!/usr/bin/env bash
# Makes .venv in the repository's root hold the packages of a requirements file; does nothing where it does already.
# Complete is what has a stamp with the sha256 of the requirements; an interrupted or outdated one is made again.
# Runs at the same time wait for each other.
: "${SETS_UP_PYTHON:=1}" # env.sh asks
set -eu
# The repository: of this file, or of the file that it is a link to, or that Slurm has made this copy of.
found() { for REPO in "$(dirname -- "$1")"/{..,../..}; do [[ -L $1 || ! -f $REPO/commands/env.sh ]] || return 0; done; return 1; }
found "${BASH_SOURCE:?run it with bash, not with sh}" || found "$(readlink -f -- "$0")" ||
  found "$(timeout 20 squeue -ho %o -j "${SLURM_JOB_ID:-0}" 2>/dev/null | sed -n 's|/[^/]*\.sh\( .*\)*$||p;q')/." || REPO=${SLURM_SUBMIT_DIR:-.}
# shellcheck source=env.sh
source "$REPO/commands/env.sh"

usage() {
  cat <<'TEXT'
usage: bash commands/setup_venv.sh [requirements.txt|requirements-gpu.txt|requirements-dev.txt]

Installs a requirements file (default: requirements.txt) into .venv of the repository, once.

pip takes its settings from the environment and from its own configuration. Which build of torch it takes depends on
the indexes it is given: with an index of CPU builds in PIP_EXTRA_INDEX_URL that one, otherwise on Linux the CUDA build.
VENV_SPACE_MB is how much must be free on the disk: by default 2500, which is right for a CPU build of torch, and 8000 for
requirements-gpu.txt. A CUDA build needs about 8000 with any requirements file.
TEXT
}

MIN_MINOR=11 # of Python 3
VENV=$REPO/.venv

find_python() { # sets BASE_PYTHON
  local name found='' version
  for name in python3 python3.14 python3.13 python3.12 python3.11; do
    command -v "$name" >/dev/null || continue
    version=$("$name" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
    if [[ $version =~ ^3\.([0-9]+)$ ]] && ((BASH_REMATCH[1] >= MIN_MINOR)); then
      BASE_PYTHON=$(command -v "$name")
      return
    fi
    found=${found:-"$name is Python $version"}
  done
  [[ -z $found ]] || die "$found, expected 3.$MIN_MINOR or newer: install python3.$MIN_MINOR and its venv module"
  die "no python3 in PATH, expected Python 3.$MIN_MINOR or newer: install it (Debian: apt install python3 python3-venv)"
}

fingerprint() { # FILE: sha256 of it and of the requirements files it includes by "-r"
  local file=$1 included
  while read -r included; do
    cat "$included"
  done < <(sed -n 's/^-r *//p' "$file") | cat - "$file" | sha256sum | cut -d' ' -f1
}

venv_is_complete() { # FILE
  [[ -x $VENV/bin/python && $(cat "$VENV/.stamp-$1" 2>/dev/null) == "$(fingerprint "$1")" ]] &&
    "$VENV/bin/python" -c '' 2>/dev/null
}

lock_venv() { # the lock is inside .venv, which git ignores; it lasts until this script ends
  local contents # one look: another set-up makes .lock before anything else, but may do so between two looks
  contents=$(ls -A "$VENV" 2>/dev/null || true)
  if [[ -n $contents && $'\n'$contents$'\n' != *$'\n.lock\n'* ]]; then
    die "$VENV was not made by this script: remove it, or use it as it is with PYTHON=$VENV/bin/python"
  fi
  open_lock "$VENV/.lock" "cannot write in $REPO: use a checkout of your own"
  lock "$LOCK" "$VENV/.lock" --nonblock || {
    echo "waiting for another set-up of $VENV"
    lock "$LOCK" "$VENV/.lock"
  }
}

build() { # FILE
  local name last_line
  if [[ $1 != requirements.txt ]] && venv_is_complete requirements.txt; then
    need_space "$REPO" 300 "adding $1 to .venv"
  else
    find_python
    "$BASE_PYTHON" -c 'import ensurepip, venv' 2>/dev/null ||
      die "$BASE_PYTHON has no venv module: install it (Debian: apt install python3-venv)"
    find "$VENV" -mindepth 1 -maxdepth 1 ! -name .lock -exec rm -rf {} +
    need_space "$REPO" "$VENV_SPACE_MB" .venv
    "$BASE_PYTHON" -m venv "$VENV" >"$VENV/pip.log" 2>&1 ||
      die "$BASE_PYTHON -m venv failed: $(tail -n 1 "$VENV/pip.log")"
  fi
  rm -f "$VENV"/.stamp-*
  echo "installing $1 into $VENV (once; some minutes; log: $VENV/pip.log)"
  if ! "$VENV/bin/python" -m pip install --disable-pip-version-check --no-input -r "$1" >>"$VENV/pip.log" 2>&1; then
    last_line=$(grep -i error "$VENV/pip.log" | tail -n 1 || true)
    die "pip failed: ${last_line:-no message}; see $VENV/pip.log, and run this again"
  fi
  for name in requirements.txt "$1"; do # requirements-dev.txt includes requirements.txt
    fingerprint "$name" >"$VENV/.stamp-$name"
  done
}

parse_options '' '' "$@"
requirements=${OTHERS[0]:-requirements.txt}
case $requirements in
  requirements-gpu.txt) setting VENV_SPACE_MB 8000 ;;
  *) setting VENV_SPACE_MB 2500 ;;
esac
[[ -f $requirements ]] || die "$requirements: no such file in $REPO"
if ! venv_is_complete "$requirements"; then
  lock_venv
  venv_is_complete "$requirements" || build "$requirements"
fi
