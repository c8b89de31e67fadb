#!/usr/bin/env bash
# Preprocesses the collection and generates the first negatives of an arm, unless they are there. Flags: see arm.sh.
#
#     STRATEGY=top bash commands/run_initial_data.sh
set -eu
# The repository: of this file, or of the file that it is a link to, or that Slurm has made this copy of.
found() { for REPO in "$(dirname -- "$1")"/{..,../..}; do [[ -L $1 || ! -f $REPO/commands/env.sh ]] || return 0; done; return 1; }
found "${BASH_SOURCE:?run it with bash, not with sh}" || found "$(readlink -f -- "$0")" ||
  found "$(timeout 20 squeue -ho %o -j "${SLURM_JOB_ID:-0}" 2>/dev/null | sed -n 's|/[^/]*\.sh\( .*\)*$||p;q')/." || REPO=${SLURM_SUBMIT_DIR:-.}
# shellcheck source=arm.sh
source "$REPO/commands/arm.sh"

choose_arm "$@"
begin_job "$(arm_dir "$STRATEGY")" generator
need_data
initial_data "$STRATEGY"
