# shellcheck shell=bash
# Sourced by the scripts that train on MS MARCO: the steps they are made of, with ANCE's published values for passages
# (microsoft/ANCE, README and commands/). Flags given to a script come after these and win:
#
#     SCRIPT [flags of every program] [--trainer flags of run_ann] [--generator flags of run_ann_data_gen]
#
# With --dry_run every program checks its flags and inputs, prints them, and ends.

# shellcheck source=env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
# shellcheck source=processes.sh
source "$(dirname "${BASH_SOURCE[0]}")/processes.sh"

setting STRATEGY top      # top, top_bottom, bottom, random
setting GLOBAL_BATCH 64   # triples of an optimiser step, on any number of GPUs: ANCE's 4 GPUs x 8 x 2 micro-batches
setting ACCUMULATION 2    # micro-batches of an optimiser step
setting TOPK_TRAINING 200 # candidates of a query
setting NEGATIVE_SAMPLE 20
setting ANN_CHUNK_FACTOR 5 # a refresh searches one in so many train queries
setting EVAL_BATCH 128     # see --per_gpu_eval_batch_size
setting SEED 42            # of every program
setting REFRESH_MODE ''    # async or lockstep; default: async (ANCE's), lockstep where arms are compared (use_subset_10)
setting STEPS_PER_REFRESH 10000 # steps between two checkpoints and so, in lockstep, between two refreshes
setting REFRESH_LAG 1      # in lockstep: 0 the trainer waits for each refresh, 1 both work at once
setting POLL_SECONDS 5     # between two looks for the first negatives

PRECISION=()
((GPUS == 0)) || PRECISION=(--fp16)

DRY_RUN=0
FLAGS=()           # of every program
TRAINER_FLAGS=()   # of run_ann alone
GENERATOR_FLAGS=() # of run_ann_data_gen alone

split_flags() { # FLAGS...
  local word to=both
  for word in "$@"; do
    case $word in
      --trainer | --generator) to=${word#--} ;;
      --dry_run) DRY_RUN=1 ;;
      *)
        case $to in
          both) FLAGS+=("$word") ;;
          trainer) TRAINER_FLAGS+=("$word") ;;
          generator) GENERATOR_FLAGS+=("$word") ;;
        esac
        ;;
    esac
  done
  ((DRY_RUN == 0)) || FLAGS=(--dry_run "${FLAGS[@]+"${FLAGS[@]}"}")
}

use_subset_10() { # the 10% subset stands in for the whole collection, and its arms are on one schedule
  setting REFRESH_MODE lockstep
  SUBSET_OF=$RAW_DATA_DIR
  RAW_DATA_DIR=$SUBSET_RAW_DIR
  DATA_DIR=$SUBSET_DATA_DIR
  RUN_NAME=msmarco_10
}
SUBSET_OF=''
RUN_NAME=msmarco

# Makes DATA_DIR, and the subset it is made from, unless they are complete. The manifests are written last.
prepare_data() {
  [[ ! -f $DATA_DIR/manifest.json ]] || return 0
  local parent
  parent=$(dirname "$DATA_DIR")
  mkdir -p "$parent"
  exec 8>>"$parent/.prepare.lock"
  flock 8 # jobs that start together wait for the first
  if [[ ! -f $DATA_DIR/manifest.json ]]; then
    if [[ -n $SUBSET_OF && ! -f $RAW_DATA_DIR/subset.json ]]; then
      command_for 1 data.create_subset --data_dir "$SUBSET_OF" --out_data_dir "$RAW_DATA_DIR" --data_type "$DATA_TYPE" \
        --fraction 0.1 --seed 42
      run_here "${COMMAND[@]}"
    fi
    command_for 1 data.msmarco_data --data_dir "$RAW_DATA_DIR" --out_data_dir "$DATA_DIR" --data_type "$DATA_TYPE" \
      --model_type "$MODEL_TYPE" --model_name_or_path "$MODEL" \
      --max_seq_length "$MAX_SEQ_LENGTH" --max_query_length "$MAX_QUERY_LENGTH"
    run_here "${COMMAND[@]}"
  fi
  exec 8>&-
}

need_data() {
  ((DRY_RUN == 1)) || prepare_data
}

need_warmup() { # one that is finished, or the checkpoint that was given
  [[ -z $WARMUP_CHECKPOINT_GIVEN ]] || return 0
  [[ -n $WARMUP_CHECKPOINT ]] ||
    die "no checkpoint-* in $WARMUP_DIR: run commands/run_train_warmup.sh, or set WARMUP_CHECKPOINT to a checkpoint"
  [[ -f $WARMUP_DIR/DONE.json ]] ||
    die "no DONE.json in $WARMUP_DIR: let its warmup finish, or set WARMUP_CHECKPOINT=$WARMUP_CHECKPOINT to take this one"
}

arm_dir() { # STRATEGY
  printf '%s' "$RUNS_DIR/$RUN_NAME/arms/$1"
}

schedule() { # sets SCHEDULE, the flags that trainer and generator must have in common
  SCHEDULE=(--refresh_mode "${REFRESH_MODE:-async}" --steps_per_refresh "$STEPS_PER_REFRESH" --refresh_lag "$REFRESH_LAG"
    --seed "$SEED")
}

# A refresh's embeddings of MS MARCO are 27 GB; only the newest stay.
generator_command() { # GPUS STRATEGY FLAGS...: sets COMMAND
  local gpus=$1 arm
  arm=$(arm_dir "$2")
  schedule
  command_for "$gpus" drivers.run_ann_data_gen --data_dir "$DATA_DIR" --training_dir "$arm/checkpoints" \
    --init_model_dir "$WARMUP_CHECKPOINT" --model_type "$MODEL_TYPE" --output_dir "$arm/ann_data" \
    --max_seq_length "$MAX_SEQ_LENGTH" --max_query_length "$MAX_QUERY_LENGTH" --per_gpu_eval_batch_size "$EVAL_BATCH" \
    --negative_strategy "$2" --topk_training "$TOPK_TRAINING" --negative_sample "$NEGATIVE_SAMPLE" \
    --ann_chunk_factor "$ANN_CHUNK_FACTOR" --only_keep_latest_embedding_file "${SCHEDULE[@]}" \
    "${PRECISION[@]+"${PRECISION[@]}"}" "${@:3}" \
    "${FLAGS[@]+"${FLAGS[@]}"}" "${GENERATOR_FLAGS[@]+"${GENERATOR_FLAGS[@]}"}"
}

trainer_command() { # GPUS STRATEGY: sets COMMAND
  local gpus=$1 processes=$(($1 > 1 ? $1 : 1)) arm
  arm=$(arm_dir "$2")
  schedule
  ((GLOBAL_BATCH % (processes * ACCUMULATION) == 0)) ||
    die "GLOBAL_BATCH is $GLOBAL_BATCH, expected a multiple of $processes GPUs x $ACCUMULATION micro-batches"
  command_for "$gpus" drivers.run_ann --data_dir "$DATA_DIR" --ann_dir "$arm/ann_data" --output_dir "$arm/checkpoints" \
    --model_type "$MODEL_TYPE" --model_name_or_path "$WARMUP_CHECKPOINT" \
    --max_seq_length "$MAX_SEQ_LENGTH" --max_query_length "$MAX_QUERY_LENGTH" \
    --optimizer lamb --learning_rate 1e-6 --warmup_steps 5000 --single_warmup --max_steps 1000000 \
    --per_gpu_train_batch_size "$((GLOBAL_BATCH / (processes * ACCUMULATION)))" \
    --gradient_accumulation_steps "$ACCUMULATION" --logging_steps 100 --save_steps "$STEPS_PER_REFRESH" \
    "${SCHEDULE[@]}" "${PRECISION[@]+"${PRECISION[@]}"}" "${FLAGS[@]+"${FLAGS[@]}"}" "${TRAINER_FLAGS[@]+"${TRAINER_FLAGS[@]}"}"
}

# The first negatives, from the warmup checkpoint, unless they are there.
initial_data() { # STRATEGY
  local arm
  arm=$(arm_dir "$1")
  [[ ! -f $arm/ann_data/ann_ndcg_0 || $DRY_RUN == 1 ]] || return 0
  generator_command "$GPUS" "$1" --end_output_num 0
  run_here "${COMMAND[@]}"
}

# Until run_train.sh has made the first negatives; exit code 4 once it fails. A FAILED.json that was there before is an
# earlier run's.
wait_for_initial_data() { # STRATEGY
  local arm file now
  local -A before=()
  arm=$(arm_dir "$1")
  [[ ! -f $arm/ann_data/ann_ndcg_0 && $DRY_RUN == 0 ]] || return 0
  echo "waiting for $arm/ann_data/ann_ndcg_0, which run_train.sh makes"
  for file in "$arm"/{ann_data,checkpoints}/FAILED.json; do
    before[$file]=$(cat "$file" 2>/dev/null || true)
  done
  until [[ -f $arm/ann_data/ann_ndcg_0 ]]; do
    sleep "$POLL_SECONDS"
    for file in "${!before[@]}"; do
      now=$(cat "$file" 2>/dev/null || true)
      if [[ -n $now && $now != "${before[$file]}" ]]; then
        printf '%s: error: run_train.sh has failed (%s): mend it and start both again\n' "${0##*/}" "$file" >&2
        exit "$PEER_GONE"
      fi
    done
  done
}

# One half of the GPUs (and cores) for the trainer, the other for the generator; a single GPU is shared.
split_gpus() { # sets TRAINER_GPUS, GENERATOR_GPUS, and their TRAINER_DEVICES, GENERATOR_DEVICES
  local -a devices
  local half=$(((GPUS + 1) / 2))
  TRAINER_GPUS=$half
  GENERATOR_GPUS=$((GPUS > 1 ? GPUS - half : GPUS))
  if [[ -n ${CUDA_VISIBLE_DEVICES:-} ]]; then
    IFS=, read -r -a devices <<<"$CUDA_VISIBLE_DEVICES"
  else
    mapfile -t devices < <(seq 0 $((GPUS - 1)))
  fi
  TRAINER_DEVICES=$(IFS=,; echo "${devices[*]:0:TRAINER_GPUS}")
  GENERATOR_DEVICES=$(IFS=,; echo "${devices[*]:GPUS - GENERATOR_GPUS:GENERATOR_GPUS}")
}

# An arm from the warmup checkpoint to the last step, trainer and generator at once on this node.
run_arm() { # STRATEGY FLAGS...
  local strategy=$1 arm
  # shellcheck disable=SC2034 # run_pair takes them by name
  local -a trainer generator
  shift
  split_flags "$@"
  need_warmup
  need_data
  arm=$(arm_dir "$strategy")
  initial_data "$strategy"
  split_gpus
  ((DRY_RUN == 1)) || CPUS=$((CPUS > 1 ? CPUS / 2 : 1))
  trainer_command "$TRAINER_GPUS" "$strategy"
  trainer=(env "CUDA_VISIBLE_DEVICES=$TRAINER_DEVICES" "${COMMAND[@]}")
  generator_command "$GENERATOR_GPUS" "$strategy"
  generator=(env "CUDA_VISIBLE_DEVICES=$GENERATOR_DEVICES" "${COMMAND[@]}")
  if ((DRY_RUN == 1)); then
    run_here "${trainer[@]}"
    run_here "${generator[@]}"
    return
  fi
  echo "arm $strategy: trainer on GPUs [$TRAINER_DEVICES], generator on [$GENERATOR_DEVICES]; logs: $arm/{trainer,generator}.out"
  run_pair "$strategy" "$arm" trainer generator
}
