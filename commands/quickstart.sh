#!/usr/bin/env bash
# The whole loop on real text, on a laptop: the docstrings of the installed packages as a small MS MARCO, or a collection of
# your own; BM25, a warmup, then for each strategy trainer and generator, and a table and plots of the comparison.
set -eu
# The repository: of this file, or of the file that it is a link to, or that Slurm has made this copy of.
found() { for REPO in "$(dirname -- "$1")"/{..,../..}; do [[ -L $1 || ! -f $REPO/commands/env.sh ]] || return 0; done; return 1; }
found "${BASH_SOURCE:?run it with bash, not with sh}" || found "$(readlink -f -- "$0")" ||
  found "$(timeout 20 squeue -ho %o -j "${SLURM_JOB_ID:-0}" 2>/dev/null | sed -n 's|/[^/]*\.sh\( .*\)*$||p;q')/." || REPO=${SLURM_SUBMIT_DIR:-.}
# shellcheck source=env.sh
source "$REPO/commands/env.sh"
# shellcheck source=processes.sh
source commands/processes.sh

usage() {
  cat <<'TEXT'
usage: bash commands/quickstart.sh [--strategy WORD[,WORD...]|all] [--run_dir DIR] [--dry_run]
       bash commands/quickstart.sh --data_dir DIR [--model NAME_OR_DIR] [--warmup] [the same]
       bash commands/quickstart.sh --data_dir DIR --model NAME_OR_DIR --evaluate [--run_dir DIR] [--dry_run]

  --strategy  which ranks of the top 200 become negatives: top, top_bottom, bottom or random (default: top); all runs the
              four and compares them
  --data_dir  a collection of your own in place of the docstrings: a folder as BEIR, MS MARCO or DPR have it
  --model     what is trained there: a directory or a name of the hub; without it, a small model from nothing
  --warmup    train that model on BM25's negatives first, as it is always done without --model
  --evaluate  train nothing, evaluate the model as it is; no train split is needed
  --run_dir   where everything is written (default: results/runs/quickstart of the repository; with --data_dir
              one of its name for each folder, --model, --warmup and --evaluate)
  --dry_run   print the command of every stage and end

Sets up .venv first; PYTHON=/path/to/python uses that interpreter as it is. Run again, it reuses the stages that are
complete and were made by the same commands, and redoes the others. The variables at the top of embedded.sh, such as
MAX_STEPS, can be set in the environment; with --data_dir those that collection.sh takes from its plan.
TEXT
}

use_own_collection() { # DATA, MODEL, RUN, RUN_OF and STAGE_COUNT of it, and the stages
  DATA=$(path_option data_dir '') MODEL=${OPTIONS[model]:-}
  [[ -d $DATA ]] || die "--data_dir $DATA is not a directory, expected the folder of a collection"
  [[ -n $MODEL ]] || ((evaluate == 0)) || die "--evaluate is of a model: give its --model"
  ((evaluate == 0 || with_warmup == 0)) || die "--evaluate trains nothing: omit --warmup"
  if [[ -n $MODEL ]] && [[ $MODEL =~ ^[./~] || -d $CALLER_DIR/$MODEL ]]; then MODEL=$(path_option model ''); fi
  [[ -n $MODEL ]] || with_warmup=1
  printf -v RUN_OF 'data_dir %s\nmodel %s\nevaluate %d\nwarmup %d' "$(realpath -- "$DATA")" "$MODEL" "$evaluate" "$with_warmup"
  RUN=$(path_option run_dir "results/runs/$(basename -- "$(realpath -- "$DATA")")-$(sha256sum <<<"$RUN_OF" | cut -c 1-8)")
  STAGE_COUNT=$((5 + 2 * ${#strategies[@]} + with_warmup + (${#MODEL} == 0)))
  ((evaluate == 0)) || STAGE_COUNT=3
  # shellcheck source=collection.sh
  source commands/collection.sh
}

parse_options "strategy run_dir data_dir model" "dry_run warmup evaluate" "$@"
refuse_others
dry_run=${OPTIONS[dry_run]:-0} evaluate=${OPTIONS[evaluate]:-0} with_warmup=${OPTIONS[warmup]:-0}
IFS=, read -ra strategies <<<"${OPTIONS[strategy]:-top}"
for name in "${strategies[@]}"; do
  check_strategy "$name"
done
! has_word all "${strategies[@]}" || strategies=("${STRATEGIES[@]}")
if [[ -z ${OPTIONS[data_dir]:-} ]]; then
  [[ -z ${OPTIONS[model]:-}${OPTIONS[warmup]:-}${OPTIONS[evaluate]:-} ]] ||
    die "--model, --warmup and --evaluate are for a collection of your own: give its --data_dir"
  RUN=$(path_option run_dir results/runs/quickstart)
  STAGE_COUNT=$((7 + 2 * ${#strategies[@]}))
  # shellcheck source=embedded.sh
  source commands/embedded.sh
else
  use_own_collection
fi

if ((evaluate == 1)); then
  up_to_the_warmup
  evaluate_as_it_is
  exit
fi

# An arm of an earlier run with other settings must not stand in the table next to this run's.
remove_outdated_arms() {
  local name
  for name in "${STRATEGIES[@]}"; do
    if ! has_word "$name" "${strategies[@]}" && [[ -d $RUN/${LAYOUT[arms]}/$name ]]; then
      arm_programs "$name" "$SEED" "${LAYOUT[arms]}/$name"
      UPSTREAM=$ARMS_BUILD_ON
      STAMP=$(stamp_of "${TRAINER[@]}" "${GENERATOR[@]}")
      if ! stage_is_complete "$name" "$ARM/${LAYOUT[checkpoints]}/${LAYOUT[done]}"; then
        echo "removing $RUN/$ARM: incomplete, or made with other settings"
        rm -rf "${RUN:?}/$ARM"
      fi
    fi
  done
}

up_to_the_warmup
((dry_run == 1)) || remove_outdated_arms
for name in "${strategies[@]}"; do
  arm "$name" "$name" "$SEED" "${LAYOUT[arms]}/$name"
done
UPSTREAM="bm25 warmup_eval ${strategies[*]/%/.eval}"
stage report "${LAYOUT[report_json]}" "${LAYOUT[report_json]} ${LAYOUT[report_markdown]} ${LAYOUT[report_html]}" \
  "report${LAYOUT[output_end]}" results.report --run_dir "$RUN"
if ((dry_run == 0)); then # the table, and where the report is
  if [[ -s $RUN/report${LAYOUT[output_end]} ]]; then cat "$RUN/report${LAYOUT[output_end]}"; else echo "report: $RUN/${LAYOUT[report_html]}"; fi
fi
