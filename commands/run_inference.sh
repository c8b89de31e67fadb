#!/usr/bin/env bash
# Embeds queries and passages with WARMUP_CHECKPOINT and stops: npy files in RUNS_DIR/msmarco/inference.
#
#     WARMUP_CHECKPOINT=/path/to/checkpoint bash commands/run_inference.sh [--output_dir DIR]
set -eu
here=$(dirname -- "${BASH_SOURCE:?run it with bash, not with sh}")
# A link to this file, or Slurm's copy of it:
[[ -f $here/env.sh ]] || here=$(dirname -- "$(readlink -f -- "$0")")
[[ -f $here/env.sh ]] || here=$(timeout 20 squeue -ho %o -j "${SLURM_JOB_ID-0}" 2>/dev/null | sed -n 's|/[^/]*\.sh\( .*\)*$||p;q')
[[ -f $here/env.sh ]] || here=${SLURM_SUBMIT_DIR:-.}/commands
# shellcheck source=arm.sh
source "$here/arm.sh"

split_flags "$@"
need_warmup
inference=$(run_dir)/inference
begin_job "$inference" generator
need_data
# A training directory in which no trainer leaves a checkpoint to be taken in its place.
generator_command "$GPUS" "$STRATEGY" --inference --training_dir "$inference/checkpoints" --output_dir "$inference"
run_step generator "${COMMAND[@]}"
