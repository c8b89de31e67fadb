#!/usr/bin/env bash
# Runs the test suite in .venv, which it sets up first; arguments go to pytest, "-n 0" runs one test at a time.
#
#     bash commands/test.sh [-k WORDS] [tests/test_X.py] ...
#
# PYTHON=/path/to/python uses that interpreter as it is and sets up nothing.
: "${SETS_UP_PYTHON:=1}" # env.sh asks
set -eu
# The repository: of this file, or of the file that it is a link to, or that Slurm has made this copy of.
found() { for REPO in "$(dirname -- "$1")"/{..,../..}; do [[ -L $1 || ! -f $REPO/commands/env.sh ]] || return 0; done; return 1; }
found "${BASH_SOURCE:?run it with bash, not with sh}" || found "$(readlink -f -- "$0")" ||
  found "$(timeout 20 squeue -ho %o -j "${SLURM_JOB_ID:-0}" 2>/dev/null | sed -n 's|/[^/]*\.sh\( .*\)*$||p;q')/." || REPO=${SLURM_SUBMIT_DIR:-.}
# shellcheck source=env.sh
source "$REPO/commands/env.sh"
use_venv requirements-dev.txt

# The tests' arrays are tiny and many tests start processes of their own: more threads would only fight for the cores.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export HF_HUB_OFFLINE=1
# Two workers: many tests wait for processes, or for a Slurm, of their own. A file's tests share what they have started.
exec "$PYTHON" -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder "$@"
