#!/usr/bin/env bash
# Preprocesses the collection and generates the first negatives of an arm, unless they are there. Flags: see arm.sh.
#
#     STRATEGY=top bash commands/run_initial_data.sh
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
[[ -f $here/env.sh ]] || here=${SLURM_SUBMIT_DIR:-.}/commands # Slurm runs a copy of this file
# shellcheck source=arm.sh
source "$here/arm.sh"

split_flags "$@"
choose_arm
need_warmup
begin_job "$(arm_dir "$STRATEGY")" generator
need_data
initial_data "$STRATEGY"
