#!/usr/bin/env bash
# An arm with trainer and generator at once on this node's GPUs, from the first negatives on. Flags: see arm.sh.
#
#     STRATEGY=top TRAIN_GPUS=4 GEN_GPUS=2 bash commands/run_arm.sh
set -eu
here=$(dirname -- "${BASH_SOURCE:?run it with bash, not with sh}")
# A link to this file, or Slurm's copy of it:
[[ -f $here/env.sh ]] || here=$(dirname -- "$(readlink -f -- "$0")")
[[ -f $here/env.sh ]] || here=$(timeout 20 squeue -ho %o -j "${SLURM_JOB_ID-0}" 2>/dev/null | sed -n 's|/[^/]*\.sh\( .*\)*$||p;q')
[[ -f $here/env.sh ]] || here=${SLURM_SUBMIT_DIR:-.}/commands
# shellcheck source=arm.sh
source "$here/arm.sh"

choose_arm
run_arm "$STRATEGY" "$@"
