#!/usr/bin/env bash
# Evaluates an arm that is done, and BM25 and the warmup checkpoint unless that is done, and makes the report of
# the run: metrics.json in its arms/STRATEGY/eval, bm25 and warmup/eval, and report.md. Flags: see arm.sh.
#
#     STRATEGY=top bash commands/run_evaluation.sh
set -eu
# The repository: of this file, or of the file that it is a link to, or that Slurm has made this copy of.
found() { for REPO in "$(dirname -- "$1")"/{..,../..}; do [[ -L $1 || ! -f $REPO/commands/env.sh ]] || return 0; done; return 1; }
found "${BASH_SOURCE:?run it with bash, not with sh}" || found "$(readlink -f -- "$0")" ||
  found "$(timeout 20 squeue -ho %o -j "${SLURM_JOB_ID:-0}" 2>/dev/null | sed -n 's|/[^/]*\.sh\( .*\)*$||p;q')/." || REPO=${SLURM_SUBMIT_DIR:-.}
# shellcheck source=arm.sh
source "$REPO/commands/arm.sh"

choose_arm "$@"
arm=$(arm_dir "$STRATEGY")
run=$(run_dir)
if ((DRY_RUN == 1)); then
  evaluation_command "$WARMUP_CHECKPOINT" "$arm/${LAYOUT[evaluation]}" --ann_dir "$arm/${LAYOUT[ann_data]}"
  run_here "${COMMAND[@]}"
  exit
fi
[[ -f $arm/${LAYOUT[checkpoints]}/${LAYOUT[done]} ]] || die "no ${LAYOUT[done]} in $arm/${LAYOUT[checkpoints]}: let the arm's trainer finish first"
begin_job "$arm"
evaluation_command "$(newest_checkpoint "$arm/${LAYOUT[checkpoints]}")" "$arm/${LAYOUT[evaluation]}" --ann_dir "$arm/${LAYOUT[ann_data]}"
run_whole_step "${COMMAND[@]}"

take_lock "$run/.report.lock" # the arms of a run may end at once
[[ -e $run/${LAYOUT[preprocessed]} ]] || ln -s "$DATA_DIR" "$run/${LAYOUT[preprocessed]}"
# Of the checkpoint that the arms start from: another one's has to go.
if ! "$PYTHON" - "$run/${LAYOUT[warmup]}/${LAYOUT[evaluation]}/${LAYOUT[evaluation_record]}" "$WARMUP_CHECKPOINT" <<'PY'; then
import json, pathlib, sys

try:
    model = json.loads(pathlib.Path(sys.argv[1]).read_bytes()).get("model")
except (OSError, ValueError):
    model = None
sys.exit(model != str(pathlib.Path(sys.argv[2])))
PY
  evaluation_command "$WARMUP_CHECKPOINT" "$run/${LAYOUT[warmup]}/${LAYOUT[evaluation]}"
  run_whole_step "${COMMAND[@]}"
fi
if [[ -e $RAW_DATA_DIR ]]; then
  bm25 "$run/${LAYOUT[bm25]}"
fi
if [[ ! -f $run/${LAYOUT[bm25]}/${LAYOUT[evaluation_record]} ]]; then
  echo "no report: $RAW_DATA_DIR, which BM25 reads, is not there; with it, run this script again"
  exit
fi
command_for 1 results.report --run_dir "$run"
run_whole_step "${COMMAND[@]}"
