# shellcheck shell=bash
# Sourced by the scripts that train on MS MARCO: the steps they are made of, with ANCE's published values for passages
# (microsoft/ANCE, README and commands/). Flags given to a script come after these and win:
#
#     SCRIPT [flags of every program] [--trainer flags of run_ann] [--generator flags of run_ann_data_gen]
#       [--warmup_trainer flags of run_warmup] [--evaluation flags of run_eval]
#
# Each script takes the flags of its own programs and leaves the others. Of the flags of every program the evaluation
# has those of the model alone: the two lengths, the type to compute in, and the device. With --dry_run every program
# checks its flags and inputs, prints them, and ends.

# shellcheck source=env.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"
# shellcheck source=processes.sh
source commands/processes.sh
# shellcheck source=jobs.sh
source commands/jobs.sh
# shellcheck source=flags.sh
source commands/flags.sh

setting STRATEGY top      # a --negative_strategy, or in a job array of four: all
setting SUBSET_10 0       # 1: on the 10% subset of the collection; the warmup is on the whole of it
setting TRAIN_GPUS ''     # of the GPUs that trainer and generator share, those of the trainer; default: half of them
setting GEN_GPUS ''       # and those of the generator
setting GLOBAL_BATCH 64   # triples of an optimiser step, on any number of GPUs: ANCE's 4 GPUs x 8 x 2 micro-batches
setting ACCUMULATION 2    # micro-batches of an optimiser step
setting TOPK_TRAINING 200 # candidates of a query
setting NEGATIVE_SAMPLE 20
# Triples of a query in succession: compared arms then see the same queries at every step, however many negatives each has.
# Tokens per triple on MS MARCO's passages, 64 triples at once, as a multiple of what 20 in succession take: 4 takes 1.17,
# 1 takes 1.84; as 4 GPUs x 8 x 2: 1.08 and 1.70. 0 is ANCE's: all of a query's, whose arms see different queries.
setting GROUP_SIZE 4
setting ANN_CHUNK_FACTOR 5 # a refresh searches one in so many train queries
setting EVAL_BATCH 128     # see --per_gpu_eval_batch_size
setting SEED 42            # of every program
setting REFRESH_MODE ''    # async or lockstep; default: async (ANCE's), lockstep where arms are compared (use_subset_10)
setting STEPS_PER_REFRESH 10000 # steps between two checkpoints and so, in lockstep, between two refreshes
setting REFRESH_LAG 1      # in lockstep: 0 the trainer waits for each refresh, 1 both work at once
setting DEV_SPLIT ''       # of another source: the split that is measured; default: dev
setting POLL_SECONDS 5     # between two looks for the first negatives
setting FIRST_NEGATIVES_SECONDS 86400 # how long run_ann_data_gen.sh waits for them
whole_numbers SUBSET_10 GLOBAL_BATCH ACCUMULATION FIRST_NEGATIVES_SECONDS MAX_SEQ_LENGTH MAX_RESTARTS RETURN_SECONDS
((ACCUMULATION > 0)) || die "ACCUMULATION is 0, expected at least 1"

choose_arm() { # FLAGS...: takes the flags, and sets STRATEGY, in an array by the task, and the collection
  split_flags "$@"
  if [[ $STRATEGY == all ]]; then
    [[ ${SLURM_ARRAY_TASK_ID:-} =~ ^[0-3]$ ]] || die "STRATEGY is all, expected one of ${STRATEGIES[*]} outside a job array of four"
    STRATEGY=${STRATEGIES[SLURM_ARRAY_TASK_ID]}
  fi
  ((SUBSET_10 == 0)) || use_subset_10
  need_warmup
  if ! has_word "$STRATEGY" "${STRATEGIES[@]}"; then
    generator_command 1 "$STRATEGY"
    check_commands run_ann_data_gen "${COMMAND[@]:5}"
  fi
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

run_dir() { # the directory of the run: what results.report reads
  printf '%s' "${RUN_DIR:-$RUNS_DIR/$RUN_NAME}"
}

# The warmup's negatives, of the whole collection: a run on the subset has a BM25 of its own.
if ((SUBSET_10 == 0)); then path_setting BM25_DIR "$(run_dir)/${LAYOUT[bm25]}"; else path_setting BM25_DIR "$RUNS_DIR/msmarco/${LAYOUT[bm25]}"; fi
path_setting TRIPLES "$RAW_DATA_DIR/triples.train.small.tsv"
path_setting RERANK_FILE "$RAW_DATA_DIR/top1000.${DEV_SPLIT:-dev}"

check_commands() { # PROGRAM FLAGS... [:: PROGRAM FLAGS...]: what can be known before there are data; ends the script
  "$PYTHON" -m drivers.plan.check_commands "$@" || exit
}

source_format() { # sets FORMAT, the flags that say how the raw collection is read
  FORMAT=(--source "$SOURCE")
  [[ $SOURCE != msmarco ]] || FORMAT+=(--data_type "$DATA_TYPE")
}

preprocess_command() { # RAW_DIR: sets COMMAND
  source_format
  command_for 1 data.msmarco_data --data_dir "$1" --out_data_dir "$DATA_DIR" "${FORMAT[@]}" \
    --model_type "$MODEL_TYPE" --model_name_or_path "$MODEL" \
    --max_seq_length "$MAX_SEQ_LENGTH" --max_query_length "$MAX_QUERY_LENGTH" \
    ${TEXT_PROFILE:+--text_profile "$TEXT_PROFILE"}
}

# Makes DATA_DIR, and the subset it is made from, unless they are complete. The manifests are written last.
prepare_data() {
  [[ ! -f $DATA_DIR/${LAYOUT[collection_manifest]} ]] || return 0
  local parent
  local -a FORMAT
  parent=$(dirname "$DATA_DIR")
  mkdir -p "$parent"
  take_lock "$parent/.prepare.lock"
  if [[ ! -f $DATA_DIR/${LAYOUT[collection_manifest]} ]]; then
    if [[ -n $SUBSET_OF && ! -f $RAW_DATA_DIR/${LAYOUT[subset_record]} ]]; then
      source_format
      command_for 1 data.create_subset --data_dir "$SUBSET_OF" --out_data_dir "$RAW_DATA_DIR" "${FORMAT[@]}" \
        --fraction 0.1 --seed 42
      run_whole_step "${COMMAND[@]}"
    fi
    preprocess_command "$RAW_DATA_DIR"
    run_whole_step "${COMMAND[@]}"
  fi
  exec {LOCK}>&-
}

need_data() {
  ((DRY_RUN == 1)) || prepare_data
}

need_warmup() { # one that is finished, or the checkpoint that was given
  [[ -z $WARMUP_CHECKPOINT_GIVEN ]] || return 0
  [[ -n $WARMUP_CHECKPOINT ]] ||
    die "no ${LAYOUT[checkpoint_prefix]}* in $WARMUP_DIR: run commands/run_train_warmup.sh, or set WARMUP_CHECKPOINT to a checkpoint"
  [[ -f $WARMUP_DIR/${LAYOUT[done]} ]] ||
    die "no ${LAYOUT[done]} in $WARMUP_DIR: let its warmup finish, or set WARMUP_CHECKPOINT=$WARMUP_CHECKPOINT to take this one"
}

arm_name() { # STRATEGY: as names of directories and of jobs have it
  local LC_ALL=C
  printf '%s' "${1//[^A-Za-z0-9_.-]/_}"
}

arm_dir() { # STRATEGY
  printf '%s' "$(run_dir)/${LAYOUT[arms]}/$(arm_name "$1")"
}

# BM25's run, metrics and negatives, unless they are complete: ann_ndcg_0 is written last.
bm25() { # DIR
  [[ ! -f $1/${LAYOUT[first_record]} && $DRY_RUN == 0 ]] || return 0
  command_for 1 drivers.run_bm25 --raw_data_dir "$RAW_DATA_DIR" --data_dir "$DATA_DIR" --output_dir "$1" \
    --topk_training "$TOPK_TRAINING" --negative_sample "$NEGATIVE_SAMPLE" --seed "$SEED" \
    ${DEV_SPLIT:+--dev_split "$DEV_SPLIT"}
  run_whole_step "${COMMAND[@]}"
}

choose_warmup_negatives() { # sets WARMUP_NEGATIVES: MS MARCO's triples where they are, else bm25; or what the flags say
  WARMUP_NEGATIVES=given
  gives 'triples bm25_dir' "${FLAGS[@]+"${FLAGS[@]}"}" "${WARMUP_FLAGS[@]+"${WARMUP_FLAGS[@]}"}" && return
  WARMUP_NEGATIVES=bm25
  [[ ! -f $TRIPLES ]] || WARMUP_NEGATIVES=triples
}

warmup_command() { # sets COMMAND
  local -a negatives=()
  choose_warmup_negatives
  case $WARMUP_NEGATIVES in
    bm25) negatives=(--bm25_dir "$BM25_DIR") ;;
    triples) negatives=(--triples "$TRIPLES") ;;
  esac
  with_precision FLAGS WARMUP_FLAGS
  # BM25's output holds candidates of its own.
  [[ $WARMUP_NEGATIVES == bm25 || ! -f $RERANK_FILE ]] || gives bm25_dir "${ARGV[@]+"${ARGV[@]}"}" ||
    negatives+=(--rerank_file "$RERANK_FILE")
  command_for "$GPUS" drivers.run_warmup --data_dir "$DATA_DIR" "${negatives[@]+"${negatives[@]}"}" --output_dir "$WARMUP_DIR" \
    --train_model_type "$MODEL_TYPE" --model_name_or_path "$MODEL" \
    --do_train --evaluate_during_training --max_seq_length "$((MAX_SEQ_LENGTH < 128 ? MAX_SEQ_LENGTH : 128))" --max_query_length "$MAX_QUERY_LENGTH" \
    --optimizer lamb --learning_rate 2e-4 --warmup_steps 1000 --per_gpu_train_batch_size 32 \
    --gradient_accumulation_steps 1 --num_train_epochs 2.0 --expected_train_size 35000000 \
    --per_gpu_eval_batch_size 256 --logging_steps 1000 --logging_steps_per_eval 20 --save_steps 30000 --seed "$SEED" \
    ${DEV_SPLIT:+--dev_split "$DEV_SPLIT"} \
    "${ARGV[@]+"${ARGV[@]}"}"
}

need_raw() { # adds to CHECKED, which check_commands takes, how DATA_DIR is made where it is still to be
  local raw=$RAW_DATA_DIR
  [[ -z $SUBSET_OF || -f $RAW_DATA_DIR/${LAYOUT[subset_record]} ]] || raw=$SUBSET_OF
  [[ ! -f $DATA_DIR/${LAYOUT[collection_manifest]} ]] || return 0
  [[ -d $raw ]] ||
    die "RAW_DATA_DIR $raw is not a directory, expected a collection: run commands/data_download.sh, or set RAW_DATA_DIR"
  preprocess_command "$raw"
  CHECKED+=(msmarco_data "${COMMAND[@]:5}" ::)
}

# What the warmup refuses is found before the hours of preprocessing and BM25.
check_warmup() {
  local -a CHECKED=() FLAGS=(--dry_run "${FLAGS[@]+"${FLAGS[@]}"}") # a dry run is of one process
  need_raw
  warmup_command
  check_commands "${CHECKED[@]+"${CHECKED[@]}"}" run_warmup "${COMMAND[@]:5}"
}

evaluation_command() { # CHECKPOINT DIR [FLAGS...]: sets COMMAND
  local -a dry=() lengths=(--max_seq_length "$MAX_SEQ_LENGTH" --max_query_length "$MAX_QUERY_LENGTH")
  # An arm's checkpoint says how long its texts were; the warmup's were shorter than those that the arms begin with.
  [[ $1 == "$WARMUP_CHECKPOINT" ]] || ! grep -qs '"max_seq_length"' "$1/config.json" || lengths=()
  ((DRY_RUN == 0)) || dry=(--dry_run)
  with_precision EVALUATED_AS EVALUATION_FLAGS
  command_for "$GPUS" drivers.run_eval --data_dir "$DATA_DIR" --model_type "$MODEL_TYPE" --model_name_or_path "$1" \
    --output_dir "$2" "${lengths[@]+"${lengths[@]}"}" --per_gpu_eval_batch_size "$EVAL_BATCH" \
    ${DEV_SPLIT:+--split "$DEV_SPLIT"} "${@:3}" "${ARGV[@]+"${ARGV[@]}"}" "${dry[@]+"${dry[@]}"}"
}

schedule() { # sets SCHEDULE, the flags that trainer and generator must have in common
  SCHEDULE=(--refresh_mode "${REFRESH_MODE:-async}" --steps_per_refresh "$STEPS_PER_REFRESH" --refresh_lag "$REFRESH_LAG"
    --seed "$SEED")
}

# A refresh's embeddings of MS MARCO are 27 GB; only the newest stay.
generator_command() { # GPUS STRATEGY FLAGS...: sets COMMAND
  local gpus=$1 arm
  local -a negatives=(--negative_strategy "$2")
  arm=$(arm_dir "$2")
  schedule
  with_precision FLAGS GENERATOR_FLAGS
  ! gives "$STRATEGY_FLAGS" "${ARGV[@]+"${ARGV[@]}"}" || negatives=()
  command_for "$gpus" drivers.run_ann_data_gen --data_dir "$DATA_DIR" --training_dir "$arm/${LAYOUT[checkpoints]}" \
    --init_model_dir "$WARMUP_CHECKPOINT" --model_type "$MODEL_TYPE" --output_dir "$arm/${LAYOUT[ann_data]}" \
    --max_seq_length "$MAX_SEQ_LENGTH" --max_query_length "$MAX_QUERY_LENGTH" --per_gpu_eval_batch_size "$EVAL_BATCH" \
    "${negatives[@]+"${negatives[@]}"}" --topk_training "$TOPK_TRAINING" --negative_sample "$NEGATIVE_SAMPLE" \
    --ann_chunk_factor "$ANN_CHUNK_FACTOR" --only_keep_latest_embedding_file "${SCHEDULE[@]}" \
    ${DEV_SPLIT:+--dev_split "$DEV_SPLIT"} \
    "${@:3}" "${ARGV[@]+"${ARGV[@]}"}"
}

trainer_command() { # GPUS STRATEGY: sets COMMAND
  local gpus=$1 processes=$(($1 > 1 ? $1 : 1)) arm
  arm=$(arm_dir "$2")
  schedule
  with_precision FLAGS TRAINER_FLAGS
  ((GLOBAL_BATCH % (processes * ACCUMULATION) == 0)) ||
    die "GLOBAL_BATCH is $GLOBAL_BATCH, expected a multiple of $processes GPUs x $ACCUMULATION micro-batches"
  command_for "$gpus" drivers.run_ann --data_dir "$DATA_DIR" --ann_dir "$arm/${LAYOUT[ann_data]}" --output_dir "$arm/${LAYOUT[checkpoints]}" \
    --model_type "$MODEL_TYPE" --model_name_or_path "$WARMUP_CHECKPOINT" \
    --max_seq_length "$MAX_SEQ_LENGTH" --max_query_length "$MAX_QUERY_LENGTH" \
    --optimizer lamb --learning_rate 1e-6 --warmup_steps 5000 --single_warmup --max_steps 1000000 \
    --per_gpu_train_batch_size "$((GLOBAL_BATCH / (processes * ACCUMULATION)))" \
    --gradient_accumulation_steps "$ACCUMULATION" --group_size "$GROUP_SIZE" --logging_steps 100 --save_steps "$STEPS_PER_REFRESH" \
    "${SCHEDULE[@]}" "${ARGV[@]+"${ARGV[@]}"}"
}

# The first negatives, from the warmup checkpoint, unless they are there.
initial_data() { # STRATEGY
  local arm
  arm=$(arm_dir "$1")
  [[ ! -f $arm/${LAYOUT[ann_data]}/${LAYOUT[first_record]} || $DRY_RUN == 1 ]] || return 0
  generator_command "$GPUS" "$1"
  # After the user's flags: a later end is of the generator that runs at the same time as the trainer.
  run_step generator "${COMMAND[@]}" --end_output_num 0
}

# Until run_train.sh has made the first negatives; exit code 4 once it fails, or does not come for a day. A FAILED.json
# that was there before is an earlier run's.
wait_for_initial_data() { # STRATEGY
  local arm file now deadline=$((SECONDS + FIRST_NEGATIVES_SECONDS))
  local -A before=()
  arm=$(arm_dir "$1")
  [[ ! -f $arm/${LAYOUT[ann_data]}/${LAYOUT[first_record]} && $DRY_RUN == 0 ]] || return 0
  echo "waiting for $arm/${LAYOUT[ann_data]}/${LAYOUT[first_record]}, which run_train.sh makes"
  for file in "$arm"/{"${LAYOUT[ann_data]}","${LAYOUT[checkpoints]}"}/"${LAYOUT[failed]}"; do
    before[$file]=$(cat "$file" 2>/dev/null || true)
  done
  until [[ -f $arm/${LAYOUT[ann_data]}/${LAYOUT[first_record]} ]]; do
    stop_between_steps
    if ((SECONDS >= deadline)); then
      say_error "error: no $arm/${LAYOUT[ann_data]}/${LAYOUT[first_record]} after $FIRST_NEGATIVES_SECONDS s: start run_train.sh, and this one again"
      exit "$PEER_GONE"
    fi
    sleep "$POLL_SECONDS"
    for file in "${!before[@]}"; do
      now=$(cat "$file" 2>/dev/null || true)
      if [[ -n $now && $now != "${before[$file]}" ]]; then
        say_error "error: run_train.sh has failed ($file): fix it and start both again"
        exit "$PEER_GONE"
      fi
    done
  done
}

# The first GPUs for the trainer, the last for the generator: TRAIN_GPUS and GEN_GPUS, or half of them; a single GPU is
# shared.
split_gpus() { # sets TRAINER_GPUS, GENERATOR_GPUS, and their TRAINER_DEVICES, GENERATOR_DEVICES
  local -a devices
  TRAINER_GPUS=$(((GPUS + 1) / 2))
  if ((GPUS > 1)) && [[ -n $TRAIN_GPUS$GEN_GPUS ]]; then
    TRAINER_GPUS=${TRAIN_GPUS:-$((GPUS - GEN_GPUS))}
    GENERATOR_GPUS=${GEN_GPUS:-$((GPUS - TRAIN_GPUS))}
    ((TRAINER_GPUS > 0 && GENERATOR_GPUS > 0 && TRAINER_GPUS + GENERATOR_GPUS <= GPUS)) ||
      die "TRAIN_GPUS is '$TRAIN_GPUS' and GEN_GPUS '$GEN_GPUS', expected $GPUS GPUs to hold one of each at least"
  else
    GENERATOR_GPUS=$((GPUS > 1 ? GPUS - TRAINER_GPUS : GPUS))
  fi
  visible_gpus
  devices=("${VISIBLE[@]+"${VISIBLE[@]}"}")
  if ((${#devices[@]} == 0)); then
    mapfile -t devices < <(seq 0 $((GPUS - 1)))
  fi
  TRAINER_DEVICES=$(IFS=,; echo "${devices[*]:0:TRAINER_GPUS}")
  GENERATOR_DEVICES=$(IFS=,; echo "${devices[*]:GPUS - GENERATOR_GPUS:GENERATOR_GPUS}")
}

# An arm from the warmup checkpoint to the last step, trainer and generator at once on this node.
run_arm() { # FLAGS...
  local arm ended=0
  # shellcheck disable=SC2034 # run_pair takes them by name
  local -a trainer generator
  choose_arm "$@"
  arm=$(arm_dir "$STRATEGY")
  begin_job "$arm" trainer generator
  need_data
  initial_data "$STRATEGY"
  split_gpus
  ((DRY_RUN == 1)) || CPUS=$((CPUS > 1 ? CPUS / 2 : 1))
  trainer_command "$TRAINER_GPUS" "$STRATEGY"
  with_stop_file trainer "${COMMAND[@]}"
  trainer=(env "CUDA_VISIBLE_DEVICES=$TRAINER_DEVICES" "${COMMAND[@]}")
  generator_command "$GENERATOR_GPUS" "$STRATEGY"
  with_stop_file generator "${COMMAND[@]}"
  generator=(env "CUDA_VISIBLE_DEVICES=$GENERATOR_DEVICES" "${COMMAND[@]}")
  if ((DRY_RUN == 1)); then
    run_here "${trainer[@]}"
    run_here "${generator[@]}"
    return
  fi
  stop_between_steps
  echo "arm $STRATEGY: trainer on GPUs [$TRAINER_DEVICES], generator on [$GENERATOR_DEVICES]; logs: $arm/{trainer,generator}${LAYOUT[output_end]}"
  run_pair "$STRATEGY" "$arm" trainer generator || ended=$?
  ((ended != STATE_SAVED_CODE)) || end_job "$ENDED_FIRST" "$ended"
  return "$ended"
}
