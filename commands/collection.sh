# shellcheck shell=bash
# Sourced by quickstart.sh for a collection of the user's own (--data_dir), which sets RUN (the run's directory), DATA (the
# folder), MODEL (a name, a directory or nothing), evaluate, with_warmup, RUN_OF (lines with these), dry_run and STAGE_COUNT: a
# plan, preprocessing, BM25, a warmup where one is due, and arms of trainer and generator. drivers/plan/plan.py chooses the
# settings; one that is set in the environment wins.

# shellcheck source=stages.sh
source commands/stages.sh

dry_run=${dry_run:-0} evaluate=${evaluate:-0} with_warmup=${with_warmup:-0}
setting SEED 42
setting ARM_MINUTES 15       # about how long an arm may take, where the train queries would do for longer
setting EMBEDDING_SIZE 128   # of a model that is trained from nothing, and the size of its vocabulary
setting VOCAB_SIZE 8192
setting RUN_SPACE_MB 1000
TEXT_PROFILE=${ENVIRONMENT[TEXT_PROFILE]:-} # of a model that does not record it; that of site.env is MS MARCO's
STEMMER=${ENVIRONMENT[STEMMER]:-none} # of BM25's words, a word of drivers.run_bm25 --stemmer
[[ $STEMMER =~ ^(none|s)$ ]] || die "STEMMER is '$STEMMER', expected none or s"
[[ $ARM_MINUTES =~ ^[0-9]*\.?[0-9]+$ ]] || die "ARM_MINUTES is '$ARM_MINUTES', expected a number of minutes"

if ((GPUS > 1)); then # one serves trainer and generator, who take turns
  visible_gpus
  export CUDA_VISIBLE_DEVICES=${VISIBLE[0]:-0}
  GPUS=1
fi
export TOKENIZERS_PARALLELISM=true
# shellcheck disable=SC2034 # run_logged in processes.sh asks
WATCHES=1
PAIR_THREADS=$CPUS
declare -gA PLAN=() # what drivers.run_plan chose, by name

read_plan() { # FILE
  local line value
  while IFS= read -r line; do
    value=${line#*$'\t'}
    PLAN[${line%%$'\t'*}]=${value%%$'\t'*}
  done <"$1"
}

planned() { # NAMES OF THE PLAN...: each becomes a variable in capitals, which the environment sets first
  local name
  for name in "$@"; do
    printf -v "${name^^}" '%s' "${ENVIRONMENT[${name^^}]:-${PLAN[$name]}}"
  done
}

plan_command() { # FILE: sets COMMAND, and ASKED, its words without those of the machine
  ASKED=(drivers.run_plan --data_dir "$DATA" --arm_minutes "$ARM_MINUTES")
  [[ -z $MODEL ]] || ASKED+=(--model_name_or_path "$MODEL")
  [[ -z $MODEL || -z $TEXT_PROFILE ]] || ASKED+=(--text_profile "$TEXT_PROFILE")
  ((evaluate == 0)) || ASKED+=(--evaluate)
  COMMAND=("${ASKED[@]}" --cores "$CPUS" --gpus "$GPUS" --output "$1")
}

# A run's directory is of one collection and one model: another's would remove what is there.
check_run_is_of_this() {
  local file=$STAGES/run_of
  if [[ ! -f $file ]]; then
    printf '%s\n' "$RUN_OF" >"$file"
  elif [[ $(cat "$file") != "$RUN_OF" ]]; then
    die "$RUN is of another --data_dir, --model, --warmup or --evaluate ($(paste -sd, "$file")): give another --run_dir"
  fi
}

# What a stage reads and this run has not made: its files, by name, size and time.
list_inputs() {
  { "$PYTHON" -VV && cat requirements.txt && find -L "$DATA" -type f -printf '%P %s %T@\n' | LC_ALL=C sort; } | sha256sum >"$STAGES/inputs"
  { printf '%s\n' "$MODEL" && { [[ ! -d $MODEL ]] || find -L "$MODEL" -type f -printf '%P %s %T@\n' | LC_ALL=C sort; }; } |
    sha256sum >"$STAGES/model"
}

plan_only() { # in a subshell: prints the plan, and leaves no file
  local -a ASKED COMMAND
  FILE=$(mktemp)
  trap 'rm -f "$FILE"' EXIT
  plan_command "$FILE"
  launch 1 "${COMMAND[@]}" >/dev/null && cat "$FILE"
}

# Sets the settings of a run: those of the plan, and what the environment has in their place.
take_plan() {
  local name planned_lines file=$RUN/${LAYOUT[plan]}
  local -a ASKED COMMAND
  if ((dry_run == 1)); then
    [[ -n $PYTHON_GIVEN || -x $REPO/.venv/bin/python ]] ||
      die "planning needs the packages and there is no .venv: run bash commands/setup_venv.sh first, or give PYTHON"
    planned_lines=$(plan_only) || exit
    read_plan <(printf '%s\n' "$planned_lines")
  else
    UPSTREAM="inputs model"
    plan_command "$file"
    # On another machine the plan stays: it would be another run.
    begin_stage plan "${LAYOUT[plan]}" "${LAYOUT[plan]}" "${ASKED[@]}"
    if ((COMPLETE == 0)); then
      command_for 1 "${COMMAND[@]}"
      run_logged plan "$RUN/plan${LAYOUT[output_end]}" "${COMMAND[@]}" || exit
      end_stage plan "${LAYOUT[plan]}" "$RUN/plan${LAYOUT[output_end]}"
    fi
    grep -av '^\[transformers\]' "$RUN/plan${LAYOUT[output_end]}" | sed 's/^/    /'
    read_plan "$file"
  fi
  planned max_seq_length max_query_length dev_split splits
  MODEL_TYPE=${PLAN[model_type]} START=${PLAN[model]}
  read -ra SPLITS <<<"$SPLITS"
  lengths=(--max_seq_length "$MAX_SEQ_LENGTH" --max_query_length "$MAX_QUERY_LENGTH" ${TEXT_PROFILE:+--text_profile "$TEXT_PROFILE"})
  ((evaluate == 0)) || return 0
  planned topk_training negative_sample max_positive_ratio batch max_steps steps_per_refresh warmup_steps learning_rate loss \
    first_steps first_batch first_learning_rate first_loss
  for name in MAX_SEQ_LENGTH MAX_QUERY_LENGTH TOPK_TRAINING NEGATIVE_SAMPLE BATCH MAX_STEPS STEPS_PER_REFRESH WARMUP_STEPS FIRST_STEPS FIRST_BATCH; do
    [[ ${!name} =~ ^[1-9][0-9]{0,17}$ ]] || die "$name is '${!name}', expected a whole number of at least 1"
  done
  ((MAX_STEPS % STEPS_PER_REFRESH == 0)) ||
    die "MAX_STEPS is $MAX_STEPS, expected a multiple of STEPS_PER_REFRESH, $STEPS_PER_REFRESH"
  training=(--model_type "$MODEL_TYPE" --optimizer adamW --seed "$SEED")
  [[ $MODEL_TYPE == static ]] || training+=(--dtype auto)
}

own_collection() {
  # What was planned is in the stages' words.
  UPSTREAM="inputs model"
  TOKENIZER=$START
  if [[ -z $START ]]; then
    TOKENIZER=$RUN/${LAYOUT[tokenizer]}
    stage wordpiece "${LAYOUT[tokenizer]}/${LAYOUT[tokenizer_file]}" "${LAYOUT[tokenizer]}" "wordpiece${LAYOUT[output_end]}" \
      data.wordpiece --data_dir "$DATA" --out_dir "$TOKENIZER" --vocab_size "$VOCAB_SIZE"
    UPSTREAM=wordpiece
  fi
  stage preprocess "${LAYOUT[preprocessed]}/${LAYOUT[collection_manifest]}" "${LAYOUT[preprocessed]}" "preprocess${LAYOUT[output_end]}" \
    data.msmarco_data --data_dir "$DATA" --out_data_dir "$RUN/${LAYOUT[preprocessed]}" \
    --model_type "$MODEL_TYPE" --model_name_or_path "$TOKENIZER" "${lengths[@]}"
  ((evaluate == 0)) || return 0
  UPSTREAM=preprocess
  stage bm25 "${LAYOUT[bm25]}/${LAYOUT[evaluation_record]}" "${LAYOUT[bm25]}" "bm25${LAYOUT[output_end]}" \
    drivers.run_bm25 --raw_data_dir "$DATA" --data_dir "$RUN/${LAYOUT[preprocessed]}" --output_dir "$RUN/${LAYOUT[bm25]}" \
    --topk_training "$TOPK_TRAINING" --negative_sample "$NEGATIVE_SAMPLE" --negative_strategy random --seed "$SEED" \
    --dev_split "$DEV_SPLIT" --stemmer "$STEMMER" --keep_candidates
}

# The model that every arm starts from: MODEL, trained on BM25's negatives first where that was asked for, or a new one.
start_model() {
  local evaluation=${LAYOUT[warmup]}/${LAYOUT[evaluation]}
  local -a from=(--model_name_or_path "$START")
  UPSTREAM="preprocess model"
  if [[ -z $START ]]; then
    if ((dry_run == 0)); then
      printf '{"model_type": "static", "embedding_size": %d}\n' "$EMBEDDING_SIZE" >"$STAGES/config"
      cp "$STAGES/config" "$RUN/${LAYOUT[model_config]}"
    fi
    from=(--config_name "$RUN/${LAYOUT[model_config]}" --tokenizer_name "$TOKENIZER"
      --score_scale "$(LC_ALL=C awk "BEGIN { OFMT = \"%.9g\"; print 1 / sqrt($EMBEDDING_SIZE) }")")
  fi
  if [[ -z $START ]] || ((with_warmup == 1)); then
    UPSTREAM="bm25 model"
    RESUMABLE=1
    stage warmup "${LAYOUT[warmup]}/${LAYOUT[checkpoint_prefix]}$FIRST_STEPS/config.json" "${LAYOUT[warmup]} ${LAYOUT[arms]}" \
      "${LAYOUT[warmup]}/warmup${LAYOUT[output_end]}" \
      drivers.run_warmup --data_dir "$RUN/${LAYOUT[preprocessed]}" --bm25_dir "$RUN/${LAYOUT[bm25]}" --output_dir "$RUN/${LAYOUT[warmup]}" \
      --do_train "${from[@]}" "${lengths[@]}" "${training[@]}" --dev_split "$DEV_SPLIT" \
      --loss "$FIRST_LOSS" --learning_rate "$FIRST_LEARNING_RATE" --warmup_steps $((FIRST_STEPS / 10 + 1)) \
      --max_steps "$FIRST_STEPS" --save_steps "$FIRST_STEPS" --logging_steps 10 --per_gpu_train_batch_size "$FIRST_BATCH"
    RESUMABLE=0
    START=$RUN/${LAYOUT[warmup]}/${LAYOUT[checkpoint_prefix]}$FIRST_STEPS
    UPSTREAM=warmup
  fi
  # shellcheck disable=SC2034 # arm in stages.sh asks
  ARMS_BUILD_ON=$UPSTREAM
  stage warmup_eval "$evaluation/${LAYOUT[evaluation_record]}" "$evaluation" "$evaluation${LAYOUT[output_end]}" \
    drivers.run_eval --data_dir "$RUN/${LAYOUT[preprocessed]}" --model_type "$MODEL_TYPE" \
    --model_name_or_path "$START" --output_dir "$RUN/$evaluation" "${lengths[@]}" --split "${SPLITS[@]}"
}

arm_programs() { # STRATEGY SEED DIRECTORY (in RUN): sets ARM (the directory), TRAINER, GENERATOR and EVALUATION
  local -a lockstep=(--refresh_mode lockstep --steps_per_refresh "$STEPS_PER_REFRESH" --refresh_lag 0)
  ARM=$3
  GENERATOR=(drivers.run_ann_data_gen --data_dir "$RUN/${LAYOUT[preprocessed]}" --training_dir "$RUN/$ARM/${LAYOUT[checkpoints]}"
    --init_model_dir "$START" --model_type "$MODEL_TYPE" --output_dir "$RUN/$ARM/${LAYOUT[ann_data]}" "${lengths[@]}"
    --negative_strategy "$1" --topk_training "$TOPK_TRAINING" --negative_sample "$NEGATIVE_SAMPLE" --dev_split "$DEV_SPLIT"
    --max_positive_ratio "$MAX_POSITIVE_RATIO" --ann_chunk_factor 1 --only_keep_latest_embedding_file --seed "$2" "${lockstep[@]}")
  TRAINER=(drivers.run_ann --data_dir "$RUN/${LAYOUT[preprocessed]}" --ann_dir "$RUN/$ARM/${LAYOUT[ann_data]}"
    --output_dir "$RUN/$ARM/${LAYOUT[checkpoints]}" --model_name_or_path "$START" "${lengths[@]}" "${training[@]}"
    --group_size 1 --single_warmup --loss "$LOSS" --learning_rate "$LEARNING_RATE" --warmup_steps "$WARMUP_STEPS"
    --per_gpu_train_batch_size "$BATCH" --max_steps "$MAX_STEPS" --save_steps "$STEPS_PER_REFRESH"
    --logging_steps 10 "${lockstep[@]}")
  # shellcheck disable=SC2034 # arm in stages.sh runs it
  EVALUATION=(drivers.run_eval --data_dir "$RUN/${LAYOUT[preprocessed]}" --model_type "$MODEL_TYPE"
    --model_name_or_path "$RUN/$ARM/${LAYOUT[checkpoints]}/${LAYOUT[checkpoint_prefix]}$MAX_STEPS" --output_dir "$RUN/$ARM/${LAYOUT[evaluation]}"
    "${lengths[@]}" --split "${SPLITS[@]}" --ann_dir "$RUN/$ARM/${LAYOUT[ann_data]}")
}

# What every arm starts from. With --dry_run the commands alone.
up_to_the_warmup() {
  local -a ASKED COMMAND
  if ((dry_run == 0)); then
    use_venv requirements.txt
    # What cannot be planned is refused in the program's one line, before anything is written.
    plan_command "$RUN/${LAYOUT[plan]}"
    launch 1 "${COMMAND[@]}" --dry_run >/dev/null || exit
    prepare_run_dir
    check_run_is_of_this
    list_inputs
  fi
  take_plan
  own_collection
  ((evaluate == 1)) || start_model
}

evaluate_as_it_is() {
  UPSTREAM="preprocess model"
  stage evaluation "${LAYOUT[evaluation]}/${LAYOUT[evaluation_record]}" "${LAYOUT[evaluation]}" "${LAYOUT[evaluation]}${LAYOUT[output_end]}" \
    drivers.run_eval --data_dir "$RUN/${LAYOUT[preprocessed]}" --model_type "$MODEL_TYPE" \
    --model_name_or_path "$START" --output_dir "$RUN/${LAYOUT[evaluation]}" "${lengths[@]}" --split "${SPLITS[@]}"
  ((dry_run == 1)) || grep -a '^full ranking' "$RUN/${LAYOUT[evaluation]}${LAYOUT[output_end]}"
}
