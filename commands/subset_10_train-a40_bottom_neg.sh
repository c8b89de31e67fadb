#!/usr/bin/env bash
# The arm "top_bottom" on the 10% subset: the 20 best and the 20 worst ranked of the top 200.
# Trainer and generator share the GPUs of this node. Flags: see arm.sh.
set -eu
here=$(dirname -- "${BASH_SOURCE:?run it with bash, not with sh}")
# A link to this file, or Slurm's copy of it:
[[ -f $here/env.sh ]] || here=$(dirname -- "$(readlink -f -- "$0")")
[[ -f $here/env.sh ]] || here=$(timeout 20 squeue -ho %o -j "${SLURM_JOB_ID-0}" 2>/dev/null | sed -n 's|/[^/]*\.sh\( .*\)*$||p;q')
[[ -f $here/env.sh ]] || here=${SLURM_SUBMIT_DIR:-.}/commands
# shellcheck source=arm.sh
source "$here/arm.sh"

use_subset_10
run_arm top_bottom "$@"
