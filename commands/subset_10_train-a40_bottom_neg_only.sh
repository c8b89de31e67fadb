#!/usr/bin/env bash
# The arm "bottom" on the 10% subset: the 20 worst ranked of the top 200.
# Trainer and generator share the GPUs of this node. Flags: see arm.sh.
set -eu
# The repository: of this file, or of the file that it is a link to, or that Slurm has made this copy of.
found() { for REPO in "$(dirname -- "$1")"/{..,../..}; do [[ -L $1 || ! -f $REPO/commands/env.sh ]] || return 0; done; return 1; }
found "${BASH_SOURCE:?run it with bash, not with sh}" || found "$(readlink -f -- "$0")" ||
  found "$(timeout 20 squeue -ho %o -j "${SLURM_JOB_ID:-0}" 2>/dev/null | sed -n 's|/[^/]*\.sh\( .*\)*$||p;q')/." || REPO=${SLURM_SUBMIT_DIR:-.}
# shellcheck source=arm.sh
source "$REPO/commands/arm.sh"

STRATEGY=bottom SUBSET_10=1 run_arm "$@"
