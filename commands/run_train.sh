#!/usr/bin/env bash
# ANCE's first job: preprocesses the collection, generates the first negatives, and trains on the newest there are.
# Start run_ann_data_gen.sh beside it, at once or later, with the same STRATEGY and settings. Flags: see arm.sh.
#
#     STRATEGY=top bash commands/run_train.sh [--trainer --learning_rate 5e-6 ...]
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
begin_job "$(arm_dir "$STRATEGY")" trainer generator
need_data
initial_data "$STRATEGY"
trainer_command "$GPUS" "$STRATEGY"
run_step trainer "${COMMAND[@]}"
