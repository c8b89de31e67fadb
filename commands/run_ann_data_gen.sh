#!/usr/bin/env bash
# ANCE's second job: new negatives for each checkpoint of run_train.sh, until that one is done. Flags: see arm.sh.
# Either may be started first: this one waits until run_train.sh has made the first negatives (ann_ndcg_0), and ends
# with exit code 4 if that fails.
#
#     STRATEGY=top bash commands/run_ann_data_gen.sh
set -eu
here=$(dirname -- "${BASH_SOURCE:?run it with bash, not with sh}")
# A link to this file, or Slurm's copy of it:
[[ -f $here/env.sh ]] || here=$(dirname -- "$(readlink -f -- "$0")")
[[ -f $here/env.sh ]] || here=$(timeout 20 squeue -ho %o -j "${SLURM_JOB_ID-0}" 2>/dev/null | sed -n 's|/[^/]*\.sh\( .*\)*$||p;q')
[[ -f $here/env.sh ]] || here=${SLURM_SUBMIT_DIR:-.}/commands
# shellcheck source=arm.sh
source "$here/arm.sh"

split_flags "$@"
choose_arm
need_warmup
begin_job "$(arm_dir "$STRATEGY")" generator
wait_for_initial_data "$STRATEGY"
generator_command "$GPUS" "$STRATEGY"
run_step generator "${COMMAND[@]}"
