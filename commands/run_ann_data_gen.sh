#!/usr/bin/env bash
# ANCE's second job: new negatives for each checkpoint of run_train.sh, until that one is done. Flags: see arm.sh.
#
#     STRATEGY=top bash commands/run_ann_data_gen.sh
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
[[ -f $here/env.sh ]] || here=${SLURM_SUBMIT_DIR:-.}/commands # Slurm runs a copy of this file
# shellcheck source=arm.sh
source "$here/arm.sh"

split_flags "$@"
need_warmup
generator_command "$GPUS" "$STRATEGY"
exec "${COMMAND[@]}"
