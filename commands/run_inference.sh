#!/usr/bin/env bash
# Embeds queries and passages with WARMUP_CHECKPOINT and stops: npy files in RUNS_DIR/msmarco/inference.
#
#     WARMUP_CHECKPOINT=/path/to/checkpoint bash commands/run_inference.sh [--output_dir DIR]
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
[[ -f $here/env.sh ]] || here=${SLURM_SUBMIT_DIR:-.}/commands # Slurm runs a copy of this file
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
