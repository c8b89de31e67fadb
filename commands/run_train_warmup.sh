#!/usr/bin/env bash
# The warmup checkpoint: on MS MARCO's triples where they have been downloaded, else on BM25 negatives.
# ANCE's published values for passages; flags given here come after them and win.
#
#     bash commands/run_train_warmup.sh [--max_steps 150000 ...]
set -eu
# The repository: of this file, or of the file that it is a link to, or that Slurm has made this copy of.
found() { for REPO in "$(dirname -- "$1")"/{..,../..}; do [[ -L $1 || ! -f $REPO/commands/env.sh ]] || return 0; done; return 1; }
found "${BASH_SOURCE:?run it with bash, not with sh}" || found "$(readlink -f -- "$0")" ||
  found "$(timeout 20 squeue -ho %o -j "${SLURM_JOB_ID:-0}" 2>/dev/null | sed -n 's|/[^/]*\.sh\( .*\)*$||p;q')/." || REPO=${SLURM_SUBMIT_DIR:-.}
# shellcheck source=arm.sh
source "$REPO/commands/arm.sh"

split_flags "$@"
choose_warmup_negatives
if ((DRY_RUN == 0)) && [[ ! -f $DATA_DIR/${LAYOUT[collection_manifest]} || ($WARMUP_NEGATIVES == bm25 && ! -f $BM25_DIR/${LAYOUT[first_record]}) ]]; then
  check_warmup
fi
begin_job "$WARMUP_DIR" warmup
need_data
[[ $WARMUP_NEGATIVES != bm25 ]] || bm25 "$BM25_DIR"
warmup_command
run_step warmup "${COMMAND[@]}"
