#!/usr/bin/env bash
# Submits the jobs of one arm, or of all four, to Slurm: warmup, first negatives, trainer and generator, evaluation.
set -eu
# The repository: of this file, or of the file that it is a link to, or that Slurm has made this copy of.
found() { for REPO in "$(dirname -- "$1")"/{..,../..}; do [[ -L $1 || ! -f $REPO/commands/env.sh ]] || return 0; done; return 1; }
found "${BASH_SOURCE:?run it with bash, not with sh}" || found "$(readlink -f -- "$0")" ||
  found "$(timeout 20 squeue -ho %o -j "${SLURM_JOB_ID:-0}" 2>/dev/null | sed -n 's|/[^/]*\.sh\( .*\)*$||p;q')/." || REPO=${SLURM_SUBMIT_DIR:-.}
# shellcheck source=options.sh
source "$REPO/commands/options.sh"

usage() {
  cat <<'TEXT'
usage: bash commands/submit_ance.sh --strategy top|top_bottom|bottom|random|all [options] [flags] [-- options of sbatch]

  --strategy    which ranks become negatives; all submits the four arms from one warmup, as job arrays
  --warmup      a checkpoint to start from; default: the run's own warmup, which is submitted unless it is done
  --run_dir     where the run is (default: results/runs/msmarco, or msmarco_10, of the repository)
  --subset_10   on the 10% subset of the collection; the warmup is on the whole of it
  --colocated   trainer and generator in one job, which share its GPUs
  --train_gpus  GPUs of the trainer (default: 4; colocated: half of the job's)
  --gen_gpus    GPUs of the generator (the same)
  --dry_run     print the sbatch commands, let every program check its flags, and end

Flags are of every program; those after --warmup_trainer, --trainer, --generator or --evaluation of that one alone. What
follows -- is for sbatch, at every job: -- --partition=NAME --time=1-00:00:00. sbatch also has variables of its own
(SBATCH_PARTITION, ...), which can be exported in commands/site.env. The arms run in lockstep unless REFRESH_MODE is async.

A job that nears its time limit, is preempted or loses its node resumes where it was. To stop an arm for good, scancel
its jobs: their state is saved, and the same command resumes it.
TEXT
}

parse_options "strategy warmup run_dir train_gpus gen_gpus" "subset_10 colocated dry_run --" "$@"
strategy=${OPTIONS[strategy]:-} colocated=${OPTIONS[colocated]:-0} dry_run=${OPTIONS[dry_run]:-0}
flags=("${OTHERS[@]+"${OTHERS[@]}"}") sbatch_options=("${AFTER_DASHES[@]+"${AFTER_DASHES[@]}"}")
# The other options become settings, which the scripts of the jobs have from the environment.
for pair in warmup=WARMUP_CHECKPOINT run_dir=RUN_DIR train_gpus=TRAIN_GPUS gen_gpus=GEN_GPUS subset_10=SUBSET_10; do
  [[ -z ${OPTIONS[${pair%=*}]:-} ]] || export "${pair#*=}=${OPTIONS[${pair%=*}]}"
done
export STRATEGY=top # of the checks below
# shellcheck source=arm.sh
source "$REPO/commands/arm.sh"

check_strategy "$strategy"
for name in TRAIN_GPUS GEN_GPUS; do
  [[ ${!name} =~ ^[0-9]*$ ]] || die "$name is '${!name}', expected a whole number"
done
[[ -z $WARMUP_CHECKPOINT_GIVEN || -f $WARMUP_CHECKPOINT_GIVEN/config.json ]] ||
  die "$WARMUP_CHECKPOINT_GIVEN is no checkpoint: it has no config.json"
[[ -n $WARMUP_CHECKPOINT_GIVEN ]] || export -n WARMUP_CHECKPOINT # the jobs look for it themselves
[[ -n $REFRESH_MODE ]] || REFRESH_MODE=lockstep
export REFRESH_MODE
((SUBSET_10 == 0)) || use_subset_10
RUN=$(run_dir)
[[ $RUN != *[%\\]* ]] || die "$RUN has a % or a \\ in it, expected none: sbatch reads them as its own"

# What would otherwise be found after hours in the queue.

PARSE='
import sys
from drivers.cli.evaluate import EvalFlags
from drivers.cli.generate import GenerateFlags
from drivers.cli.train import AnnFlags, WarmupFlags
from utils.errors import run_program
from utils.flags import parse_flags

kinds = {kind.__name__: kind for kind in (AnnFlags, EvalFlags, GenerateFlags, WarmupFlags)}
argv = iter([*sys.argv[1:], "::"])
for kind in argv:
    program = next(argv)
    given = list(iter(lambda: next(argv), "::"))
    code = [0]
    def parse():
        parse_flags(kinds[kind], program, given)
    try:
        run_program(program, parse)
    except SystemExit as ended:
        if ended.code:
            raise
'

check_flags() {
  local gpus=${ENVIRONMENT[GPUS]:-$((4 - 2 * colocated))} # of the trainer; a site's GPUs=0 stays on the CPU
  local WARMUP_CHECKPOINT=${WARMUP_CHECKPOINT:-$WARMUP_DIR/checkpoint} # before there is one
  local -a parsed
  ((gpus == 0)) || gpus=${TRAIN_GPUS:-$gpus}
  split_flags "${flags[@]+"${flags[@]}"}" --dry_run
  warmup_command
  parsed=(WarmupFlags run_warmup "${COMMAND[@]:5}" ::)
  generator_command 1 "$STRATEGY"
  parsed+=(GenerateFlags run_ann_data_gen "${COMMAND[@]:5}" ::)
  trainer_command "$gpus" "$STRATEGY"
  parsed+=(AnnFlags run_ann "${COMMAND[@]:5}" ::)
  evaluation_command "$WARMUP_CHECKPOINT" "$(arm_dir "$STRATEGY")/${LAYOUT[evaluation]}"
  parsed+=(EvalFlags run_eval "${COMMAND[@]:5}")
  "$PYTHON" -c "$PARSE" "${parsed[@]}"
}

# With what there is already, the programs can check more than their flags.
dry_run_programs() {
  local script
  local -a scripts=()
  [[ -n $WARMUP_CHECKPOINT_GIVEN || ! -f $DATA_DIR/${LAYOUT[collection_manifest]} ]] || scripts=(run_train_warmup.sh)
  if [[ -f $DATA_DIR/${LAYOUT[collection_manifest]} && -n $WARMUP_CHECKPOINT ]]; then
    scripts+=(run_train.sh run_ann_data_gen.sh run_evaluation.sh)
  else
    echo "the programs' flags are right; their inputs will be checked where there are data and a warmup checkpoint"
  fi
  for script in "${scripts[@]+"${scripts[@]}"}"; do
    WARMUP_CHECKPOINT=$WARMUP_CHECKPOINT bash "commands/$script" --dry_run "${flags[@]+"${flags[@]}"}"
  done
}

# What is in the queue already.

QUEUE='' # lines of a job's number, name and comment

look_at_queue() {
  if ((dry_run == 1)); then
    QUEUE=$(squeue --noheader --format='%A %j %k' 2>/dev/null) || true # may be tried anywhere
  else
    QUEUE=$(squeue --noheader --format='%A %j %k') || die "squeue failed (see the line above): is Slurm there?"
  fi
}

job_of() { # COMMENT NAME...: the first job in the queue of one of these names and of this run
  local comment=$1 id name of
  shift
  while read -r id name of; do
    if [[ $of == "$comment" ]] && has_word "$name" "$@"; then
      echo "$id"
      return
    fi
  done <<<"$QUEUE"
}

refuse_second_chain() {
  local role other id
  local -a others=("${STRATEGIES[@]}") names=()
  [[ $strategy == all ]] || others=("$strategy")
  for role in initial_data trainer generator arm evaluation; do
    for other in all "${others[@]}"; do
      names+=("ance_${role}_$other")
    done
  done
  id=$(job_of "$RUN" "${names[@]}")
  [[ -z $id ]] || die "job $id works on this arm in $RUN already: wait for it, scancel it, or give another --run_dir"
}

# Submitting.

submitted=()
table=()

submit() { # NAME SCRIPT DEPENDENCY GPUS COMMENT [OPTION OF SBATCH]: sets ID
  local name=$1 script=$2 dependency=$3 gpus=$4 comment=$5 log=%x-%j.out answer
  local -a argv
  shift 5
  if [[ " $* " == *" --array="* ]]; then log=%x-%A_%a.out; fi
  argv=(sbatch --parsable --export=ALL "--job-name=$name" "--comment=$comment" "--output=$RUN/${LAYOUT[logs]}/$log" "$@")
  [[ -z $dependency ]] || argv+=("--dependency=$dependency" --kill-on-invalid-dep=yes)
  [[ -z $gpus ]] || argv+=("--gpus-per-node=$gpus")
  argv+=("${sbatch_options[@]+"${sbatch_options[@]}"}" "$script" "${flags[@]+"${flags[@]}"}")
  if ((dry_run == 1)); then
    ID=\$${name#ance_}
    printf '%q ' "${argv[@]}" | sed 's/\\\$/$/g' && echo
    return
  fi
  if ! answer=$("${argv[@]}"); then
    ((${#submitted[@]} == 0)) || scancel "${submitted[@]}"
    die "sbatch refused $name (see the line above); nothing stays submitted"
  fi
  ID=${answer%%;*}
  submitted+=("$ID")
  log=${log/\%x/$name} log=${log/\%j/$ID} log=${log/\%A/$ID}
  row "$ID" "$name" "${dependency:--}" "$RUN/${LAYOUT[logs]}/${log/\%a/[0-3]}"
}

row() { # JOB NAME AFTER LOG
  table+=("$(printf '%-8s %-28s %-18s %s' "$@")")
}

submit_warmup() { # sets AFTER, the dependency of the first negatives
  AFTER=''
  if [[ -n $WARMUP_CHECKPOINT_GIVEN ]]; then
    row - warmup given "$WARMUP_CHECKPOINT_GIVEN"
  elif [[ -f $WARMUP_DIR/${LAYOUT[done]} ]]; then
    row - warmup 'done' "$WARMUP_CHECKPOINT"
  else
    ID=$(job_of "$WARMUP_DIR" ance_warmup)
    if [[ -n $ID ]]; then
      row "$ID" ance_warmup "in the queue" "$WARMUP_DIR"
    else
      submit ance_warmup drivers/sbatch_warmup.sh '' '' "$WARMUP_DIR"
    fi
    AFTER=afterok:$ID
  fi
}

submit_arms() {
  local after=afterok gpus=''
  local -a array=()
  [[ $strategy != all ]] || array=(--array=0-3) after=aftercorr
  export STRATEGY=$strategy
  if ((colocated == 1)); then
    [[ -z $TRAIN_GPUS || -z $GEN_GPUS ]] || gpus=$((TRAIN_GPUS + GEN_GPUS))
    submit "ance_arm_$strategy" drivers/sbatch_arm.sh "$AFTER" "$gpus" "$RUN" "${array[@]+"${array[@]}"}"
  else
    submit "ance_initial_data_$strategy" drivers/sbatch_initial_data.sh "$AFTER" '' "$RUN" "${array[@]+"${array[@]}"}"
    AFTER=$after:$ID
    submit "ance_generator_$strategy" drivers/sbatch_generate.sh "$AFTER" "$GEN_GPUS" "$RUN" "${array[@]+"${array[@]}"}"
    submit "ance_trainer_$strategy" drivers/sbatch_train.sh "$AFTER" "$TRAIN_GPUS" "$RUN" "${array[@]+"${array[@]}"}"
  fi
  submit "ance_evaluation_$strategy" drivers/sbatch_evaluate.sh "$after:$ID" '' "$RUN" "${array[@]+"${array[@]}"}"
}

check_flags
if ((dry_run == 0)); then
  command -v sbatch >/dev/null ||
    die "sbatch is not in PATH: submit from a login node, or run commands/run_arm.sh on this one"
  mkdir -p "$RUN/${LAYOUT[logs]}" # without it every job fails without a word
fi
look_at_queue
refuse_second_chain
row job name after log
submit_warmup
submit_arms
if ((dry_run == 1)); then
  dry_run_programs
else
  printf '%s\n' "${table[@]}"
fi
