#!/usr/bin/env bash
# ANCE's first job: preprocesses the collection, generates the first negatives, and trains on the newest there are.
# Start run_ann_data_gen.sh beside it, at once or later, with the same STRATEGY and settings. Flags: see arm.sh.
#
#     STRATEGY=top bash commands/run_train.sh [--trainer --learning_rate 5e-6 ...]
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
[[ -f $here/env.sh ]] || here=${SLURM_SUBMIT_DIR:-.}/commands # Slurm runs a copy of this file
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
