#!/usr/bin/env bash
# Embeds queries and passages with one checkpoint and stops: npy files in RUNS_DIR/msmarco/arms/STRATEGY/ann_data.
#
#     WARMUP_CHECKPOINT=/path/to/checkpoint bash commands/run_inference.sh [--output_dir DIR]
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
[[ -f $here/env.sh ]] || here=${SLURM_SUBMIT_DIR:-.}/commands # Slurm runs a copy of this file
# shellcheck source=arm.sh
source "$here/arm.sh"

split_flags "$@"
need_warmup
need_data
generator_command "$GPUS" "$STRATEGY" --end_output_num 0 --inference
exec "${COMMAND[@]}"
