#!/usr/bin/env bash
# Preprocesses the collection and generates the first negatives of an arm, unless they are there. Flags: see arm.sh.
#
#     STRATEGY=top bash commands/run_initial_data.sh
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
begin_job "$(arm_dir "$STRATEGY")" generator
need_data
initial_data "$STRATEGY"
