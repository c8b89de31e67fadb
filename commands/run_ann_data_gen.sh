#!/usr/bin/env bash
# ANCE's second job: new negatives for each checkpoint of run_train.sh, until that one is done. Flags: see arm.sh.
# Either may be started first: this one waits until run_train.sh has made the first negatives (ann_ndcg_0), and ends
# with exit code 4 if that fails.
#
#     STRATEGY=top bash commands/run_ann_data_gen.sh
set -eu
# The repository: of this file, or of the file that it is a link to, or that Slurm has made this copy of.
found() { for REPO in "$(dirname -- "$1")"/{..,../..}; do [[ -L $1 || ! -f $REPO/commands/env.sh ]] || return 0; done; return 1; }
found "${BASH_SOURCE:?run it with bash, not with sh}" || found "$(readlink -f -- "$0")" ||
  found "$(timeout 20 squeue -ho %o -j "${SLURM_JOB_ID:-0}" 2>/dev/null | sed -n 's|/[^/]*\.sh\( .*\)*$||p;q')/." || REPO=${SLURM_SUBMIT_DIR:-.}
# shellcheck source=arm.sh
source "$REPO/commands/arm.sh"

choose_arm "$@"
begin_job "$(arm_dir "$STRATEGY")" generator
wait_for_initial_data "$STRATEGY"
generator_command "$GPUS" "$STRATEGY"
run_step generator "${COMMAND[@]}"
