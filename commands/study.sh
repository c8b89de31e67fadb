#!/usr/bin/env bash
#SBATCH --job-name=ance_study
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=8G
#SBATCH --time=04:00:00
# What the rank of the negatives does, on the embedded collection: arms x seeds from one warmup checkpoint in lockstep,
# with tests of every pair.
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
usage: bash commands/study.sh [--seeds "1 2 3 4 5"] [--arms "NAME=STRATEGY ..."] [--run_dir DIR] [--output DIR] [--dry_run]
       sbatch commands/study.sh [the same]

  --seeds    each arm is trained once with each (default: 1 to 5)
  --arms     what is compared: names, each with its --negative_strategy. @N behind one adds N to the seed: next to
             top=top, again=top@1000 is an A/A arm (default: top, top_bottom, random, bottom, corpus, again)
  --run_dir  where everything is written (default: results/runs/study of the repository)
  --output   where the summary goes (default: RUN_DIR/report)
  --dry_run  print the command of every stage and end

All arms start from one warmup checkpoint, and train for the same steps on as many triples; arms of one seed see the same queries
in the same order. Run again, it reuses what is complete, so a seed can be added later. The settings are quickstart.sh's.
TEXT
}

parse_options "seeds arms run_dir output" dry_run "$@"
refuse_others
dry_run=${OPTIONS[dry_run]:-0} seeds=${OPTIONS[seeds]:-1 2 3 4 5}
arms=${OPTIONS[arms]:-top=top top_bottom=top_bottom random=random bottom=bottom corpus=corpus again=top@1000}
read -d '' -ra SEEDS <<<"$seeds" || true
read -d '' -ra ARMS <<<"$arms" || true
declare -A IS_SEED=()
for seed in "${SEEDS[@]}"; do
  [[ $seed =~ ^(0|[1-9][0-9]*)$ ]] || die "--seeds has '$seed', expected whole numbers"
  [[ -z ${IS_SEED[$seed]:-} ]] || die "--seeds names $seed twice"
  IS_SEED[$seed]=1
done
declare -A STRATEGY_OF=() OFFSET_OF=()
NAMES=()
for word in "${ARMS[@]}"; do
  name=${word%%=*} strategy=${word#*=}
  [[ $word == *=* && $name =~ ^[A-Za-z0-9_-]+$ && -n $strategy ]] ||
    die "--arms has '$word', expected NAME=STRATEGY with a name of letters, digits, - and _"
  [[ -z ${STRATEGY_OF[$name]:-} ]] || die "--arms names $name twice"
  OFFSET_OF[$name]=0
  if [[ $strategy =~ ^(.*)@([0-9]+)$ ]]; then
    strategy=${BASH_REMATCH[1]} OFFSET_OF[$name]=${BASH_REMATCH[2]}
  fi
  STRATEGY_OF[$name]=$strategy
  NAMES+=("$name")
done
((${#SEEDS[@]} > 0 && ${#NAMES[@]} > 0)) || die "--seeds '$seeds' and --arms '$arms': expected at least one of each"

RUN=$(path_option run_dir results/runs/study)
OUTPUT=$(path_option output "$RUN/report")
STAGE_COUNT=$((7 + 2 * ${#SEEDS[@]} * ${#NAMES[@]}))
setting RUN_SPACE_MB $((500 + 250 * ${#SEEDS[@]} * ${#NAMES[@]}))
# shellcheck source=embedded.sh
source commands/embedded.sh
ARM_GENERATOR_FLAGS=(--only_keep_latest_embedding_file --bm25_dir "$RUN/${LAYOUT[bm25]}")

up_to_the_warmup
if ((dry_run == 0)); then # a mistyped strategy must not be found when its arm's turn comes
  for name in "${NAMES[@]}"; do
    arm_programs "${STRATEGY_OF[$name]}" 0 "checked/$name"
    command_for 1 "${GENERATOR[@]}" --dry_run
    run_logged "the arm $name" "$RUN/checked${LAYOUT[output_end]}" "${COMMAND[@]}" || exit
  done
fi
for seed in "${SEEDS[@]}"; do
  for name in "${NAMES[@]}"; do
    arm "seed-$seed.$name" "${STRATEGY_OF[$name]}" $((seed + OFFSET_OF[$name])) "${LAYOUT[seed_prefix]}$seed/$name"
  done
done
first_seed=() UPSTREAM=warmup # another seed would take other queries
for name in "${NAMES[@]}"; do
  if ((OFFSET_OF[$name] == 0)); then
    first_seed+=("$name=${LAYOUT[seed_prefix]}${SEEDS[0]}/$name")
    UPSTREAM+=" seed-${SEEDS[0]}.$name"
  fi
done
((${#first_seed[@]} == 0)) || neighbourhood "${first_seed[@]}"
study=(results.report --run_dir "$RUN" --output "$OUTPUT" --seeds "${SEEDS[@]}" --arms "${NAMES[@]}")
if ((dry_run == 1)); then
  printf '%q ' "${study[@]}" && echo
  exit
fi
rm -f "$RUN/report${LAYOUT[output_end]}"
command_for 1 "${study[@]}"
run_logged report "$RUN/report${LAYOUT[output_end]}" "${COMMAND[@]}" || exit
cat "$RUN/report${LAYOUT[output_end]}" # the table, and where the report is
