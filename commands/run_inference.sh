#!/usr/bin/env bash
# Embeds queries and passages with WARMUP_CHECKPOINT and stops: npy files in RUNS_DIR/msmarco/inference.
#
#     WARMUP_CHECKPOINT=/path/to/checkpoint bash commands/run_inference.sh [--output_dir DIR]
set -eu
# The repository: of this file, or of the file that it is a link to, or that Slurm has made this copy of.
found() { for REPO in "$(dirname -- "$1")"/{..,../..}; do [[ -L $1 || ! -f $REPO/commands/env.sh ]] || return 0; done; return 1; }
found "${BASH_SOURCE:?run it with bash, not with sh}" || found "$(readlink -f -- "$0")" ||
  found "$(timeout 20 squeue -ho %o -j "${SLURM_JOB_ID:-0}" 2>/dev/null | sed -n 's|/[^/]*\.sh\( .*\)*$||p;q')/." || REPO=${SLURM_SUBMIT_DIR:-.}
# shellcheck source=arm.sh
source "$REPO/commands/arm.sh"

split_flags "$@"
need_warmup
inference=$(run_dir)/${LAYOUT[inference]}
begin_job "$inference" generator
need_data
# A training directory in which no trainer leaves a checkpoint to be taken in its place.
generator_command "$GPUS" "$STRATEGY" --inference --training_dir "$inference/${LAYOUT[checkpoints]}" --output_dir "$inference"
run_step generator "${COMMAND[@]}"
