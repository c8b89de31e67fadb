#!/usr/bin/env bash
# An arm with trainer and generator at once on this node's GPUs, from the first negatives on. Flags: see arm.sh.
#
#     STRATEGY=top TRAIN_GPUS=4 GEN_GPUS=2 bash commands/run_arm.sh
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
[[ -f $here/env.sh ]] || here=${SLURM_SUBMIT_DIR:-.}/commands # Slurm runs a copy of this file
# shellcheck source=arm.sh
source "$here/arm.sh"

choose_arm
run_arm "$STRATEGY" "$@"
