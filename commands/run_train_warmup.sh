#!/usr/bin/env bash
# The warmup checkpoint: on MS MARCO's triples where they have been downloaded, else on BM25 negatives.
# ANCE's published values for passages; flags given here come after them and win.
#
#     bash commands/run_train_warmup.sh [--max_steps 150000 ...]
set -eu
here=$(dirname -- "${BASH_SOURCE:?run it with bash, not with sh}")
# A link to this file, or Slurm's copy of it:
[[ -f $here/env.sh ]] || here=$(dirname -- "$(readlink -f -- "$0")")
[[ -f $here/env.sh ]] || here=$(timeout 20 squeue -ho %o -j "${SLURM_JOB_ID-0}" 2>/dev/null | sed -n 's|/[^/]*\.sh\( .*\)*$||p;q')
[[ -f $here/env.sh ]] || here=${SLURM_SUBMIT_DIR:-.}/commands
# shellcheck source=arm.sh
source "$here/arm.sh"

split_flags "$@"
begin_job "$WARMUP_DIR" warmup
need_data
choose_warmup_negatives
[[ $WARMUP_NEGATIVES != bm25 ]] || bm25 "$BM25_DIR"
warmup_command
run_step warmup "${COMMAND[@]}"
