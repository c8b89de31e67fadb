#!/usr/bin/env bash
# The arm "top_bottom" on the 10% subset: the 20 best and the 20 worst ranked of the top 200.
# Trainer and generator share the GPUs of this node. Flags: see arm.sh.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
[[ -f $here/env.sh ]] || here=${SLURM_SUBMIT_DIR:-.}/commands # Slurm runs a copy of this file
# shellcheck source=arm.sh
source "$here/arm.sh"

use_subset_10
run_arm top_bottom "$@"
