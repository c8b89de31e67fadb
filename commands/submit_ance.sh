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
usage: bash commands/submit_ance.sh --strategy WORD|all [options] [flags] [-- options of sbatch]

  --strategy    which ranks become negatives: a --negative_strategy of run_ann_data_gen, as top or ranks:21-60; all
                submits top, top_bottom, bottom and random from one warmup, as job arrays
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

[[ -n $strategy ]] || die "--strategy is '', expected one of ${STRATEGIES[*]} all, or another word of docs/strategies.md"
[[ $strategy == all ]] || export STRATEGY=$strategy # else one that stands for the four, in the checks
for name in TRAIN_GPUS GEN_GPUS; do
  [[ -z ${!name} ]] || whole_numbers "$name"
done
[[ -z $WARMUP_CHECKPOINT_GIVEN || -f $WARMUP_CHECKPOINT_GIVEN/config.json ]] ||
  die "$WARMUP_CHECKPOINT_GIVEN is no checkpoint: it has no config.json"
[[ -n $WARMUP_CHECKPOINT_GIVEN ]] || export -n WARMUP_CHECKPOINT # the jobs look for it themselves
[[ -n $REFRESH_MODE ]] || REFRESH_MODE=lockstep
export REFRESH_MODE
WHOLE_DATA_DIR=$DATA_DIR
((SUBSET_10 == 0)) || use_subset_10
RUN=$(run_dir) arm=$(arm_name "$strategy")
[[ $RUN != *[%\\]* ]] || die "$RUN has a % or a \\ in it, expected none: sbatch reads them as its own"

# What would otherwise be found after hours in the queue.

check_flags() { # of the programs of an arm
  local gpus=${ENVIRONMENT[GPUS]:-$((4 - 2 * colocated))} # of the trainer; a site's GPUs=0 stays on the CPU
  local WARMUP_CHECKPOINT=${WARMUP_CHECKPOINT:-$WARMUP_DIR/checkpoint} # before there is one
  local -a CHECKED
  ((gpus == 0)) || gpus=${TRAIN_GPUS:-$gpus}
  split_flags "${flags[@]+"${flags[@]}"}" --dry_run
  generator_command 1 "$STRATEGY"
  CHECKED=(run_ann_data_gen "${COMMAND[@]:5}" ::)
  trainer_command "$gpus" "$STRATEGY"
  CHECKED+=(run_ann "${COMMAND[@]:5}" ::)
  evaluation_command "$WARMUP_CHECKPOINT" "$(arm_dir "$STRATEGY")/${LAYOUT[evaluation]}"
  check_commands "${CHECKED[@]}" run_eval "${COMMAND[@]:5}"
}

check_inputs() { # the collection, where it is still to be made, and the warmup, where it is due
  local -a CHECKED=()
  need_raw
  if [[ -z $WARMUP_CHECKPOINT_GIVEN && ! -f $WARMUP_DIR/${LAYOUT[done]} ]]; then
    local DATA_DIR=$WHOLE_DATA_DIR RAW_DATA_DIR=${SUBSET_OF:-$RAW_DATA_DIR} SUBSET_OF='' # a subset has no warmup of its own
    need_raw
    warmup_command
    CHECKED+=(run_warmup "${COMMAND[@]:5}" ::)
  fi
  ((${#CHECKED[@]} == 0)) || check_commands "${CHECKED[@]}"
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
  local -a others=(all "${STRATEGIES[@]}") names=()
  if [[ $strategy != all ]]; then
    others=("$arm")
    ! has_word "$arm" "${STRATEGIES[@]}" || others+=(all)
  fi
  for role in initial_data trainer generator arm evaluation; do
    for other in "${others[@]}"; do
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
    submit "ance_arm_$arm" drivers/sbatch_arm.sh "$AFTER" "$gpus" "$RUN" "${array[@]+"${array[@]}"}"
  else
    submit "ance_initial_data_$arm" drivers/sbatch_initial_data.sh "$AFTER" '' "$RUN" "${array[@]+"${array[@]}"}"
    AFTER=$after:$ID
    submit "ance_generator_$arm" drivers/sbatch_generate.sh "$AFTER" "$GEN_GPUS" "$RUN" "${array[@]+"${array[@]}"}"
    submit "ance_trainer_$arm" drivers/sbatch_train.sh "$AFTER" "$TRAIN_GPUS" "$RUN" "${array[@]+"${array[@]}"}"
  fi
  submit "ance_evaluation_$arm" drivers/sbatch_evaluate.sh "$after:$ID" '' "$RUN" "${array[@]+"${array[@]}"}"
}

check_flags
if ((dry_run == 0)); then
  check_inputs
  command -v sbatch >/dev/null ||
    die "sbatch is not in PATH: submit from a login node, or run commands/run_arm.sh on this one"
fi
look_at_queue
refuse_second_chain
((dry_run == 1)) || mkdir -p "$RUN/${LAYOUT[logs]}" # without it every job fails without a word
row job name after log
submit_warmup
submit_arms
if ((dry_run == 1)); then
  check_inputs
  dry_run_programs
else
  printf '%s\n' "${table[@]}"
fi
