#!/usr/bin/env bash
# The whole loop on real text, on a laptop: the docstrings of the installed packages as a small MS MARCO, BM25, a
# warmup, then for each strategy trainer and generator at once, and a table and plots of the comparison.
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
usage: bash commands/quickstart.sh [--strategy top|top_bottom|bottom|random|all] [--run_dir DIR] [--dry_run]

  --strategy  which ranks of the top 200 become negatives (default: top); all runs the four and compares them
  --run_dir   where everything is written (default: results/runs/quickstart of the repository)
  --dry_run   print the command of every stage and end

Sets up .venv first; PYTHON=/path/to/python uses that interpreter as it is. Run again, it reuses the stages that are
complete and were made by the same commands, and redoes the others. The variables at the top of embedded.sh, such as
MAX_STEPS, can be set in the environment.
TEXT
}

parse_options "strategy run_dir" dry_run "$@"
refuse_others
dry_run=${OPTIONS[dry_run]:-0} strategies=("${OPTIONS[strategy]:-top}")
check_strategy "${strategies[0]}"
[[ ${strategies[0]} != all ]] || strategies=("${STRATEGIES[@]}")
RUN=$(path_option run_dir results/runs/quickstart)
STAGE_COUNT=$((7 + 2 * ${#strategies[@]}))
# shellcheck source=embedded.sh
source commands/embedded.sh

# An arm of an earlier run with other settings must not stand in the table next to this run's.
remove_outdated_arms() {
  local name
  for name in "${STRATEGIES[@]}"; do
    if ! has_word "$name" "${strategies[@]}" && [[ -d $RUN/${LAYOUT[arms]}/$name ]]; then
      arm_programs "$name" "$SEED" "${LAYOUT[arms]}/$name"
      UPSTREAM=warmup
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
