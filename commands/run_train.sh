#!/usr/bin/env bash
# ANCE's first job: preprocesses the collection, generates the first negatives, and trains on the newest there are.
# Start run_ann_data_gen.sh too, at the same time or later, with the same STRATEGY and settings. Flags: see arm.sh.
#
#     STRATEGY=top bash commands/run_train.sh [--trainer --learning_rate 5e-6 ...]
set -eu
# The repository: of this file, or of the file that it is a link to, or that Slurm has made this copy of.
found() { for REPO in "$(dirname -- "$1")"/{..,../..}; do [[ -L $1 || ! -f $REPO/commands/env.sh ]] || return 0; done; return 1; }
found "${BASH_SOURCE:?run it with bash, not with sh}" || found "$(readlink -f -- "$0")" ||
  found "$(timeout 20 squeue -ho %o -j "${SLURM_JOB_ID:-0}" 2>/dev/null | sed -n 's|/[^/]*\.sh\( .*\)*$||p;q')/." || REPO=${SLURM_SUBMIT_DIR:-.}
# shellcheck source=arm.sh
source "$REPO/commands/arm.sh"

choose_arm "$@"
begin_job "$(arm_dir "$STRATEGY")" trainer generator
need_data
initial_data "$STRATEGY"
trainer_command "$GPUS" "$STRATEGY"
run_step trainer "${COMMAND[@]}"
