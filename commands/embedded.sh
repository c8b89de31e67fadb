# shellcheck shell=bash
# Sourced by quickstart.sh and study.sh, which set RUN (the run's directory), dry_run and STAGE_COUNT: the docstrings of the
# installed packages as a small MS MARCO, BM25, a warmup, and arms of trainer and generator. Stages that are complete are
# reused where their commands and inputs are the same.

dry_run=${dry_run:-0}
setting VOCAB_SIZE 8192
setting EMBEDDING_SIZE 128
setting PASSAGE_TOKENS 64
setting QUERY_TOKENS 32
setting SCORE_SCALE 0.08838834764831845 # 1/sqrt(EMBEDDING_SIZE)
setting WARMUP_STEPS 250    # of WARMUP_BATCH queries
setting WARMUP_BATCH 128
setting WARMUP_LEARNING_RATE 3e-3
setting MAX_STEPS 1200      # of an arm, each of BATCH triples
setting BATCH 128
setting LEARNING_RATE 1e-3
setting STEPS_PER_REFRESH 100
setting ANN_CHUNK_FACTOR 2  # a refresh searches one in so many train queries
setting TOPK_TRAINING 200
setting NEGATIVE_SAMPLE 20
setting SEED 42
setting DEV_QUERIES 1000
setting RUN_SPACE_MB 1000

# A mistyped number must not cost a finished stage.
for name in VOCAB_SIZE EMBEDDING_SIZE PASSAGE_TOKENS QUERY_TOKENS WARMUP_STEPS WARMUP_BATCH MAX_STEPS BATCH \
  STEPS_PER_REFRESH ANN_CHUNK_FACTOR TOPK_TRAINING NEGATIVE_SAMPLE SEED DEV_QUERIES RUN_SPACE_MB; do
  [[ ${!name} =~ ^(0|[1-9][0-9]{0,17})$ ]] || die "$name is '${!name}', expected a whole number without zeros in front"
  [[ ${!name} != 0 || $name == SEED || $name == RUN_SPACE_MB ]] || die "$name is 0, expected at least 1"
done
((VOCAB_SIZE >= 100)) || die "VOCAB_SIZE is $VOCAB_SIZE, expected at least 100"
((NEGATIVE_SAMPLE <= TOPK_TRAINING)) || die "NEGATIVE_SAMPLE is $NEGATIVE_SAMPLE, expected at most TOPK_TRAINING, $TOPK_TRAINING"
for name in SCORE_SCALE WARMUP_LEARNING_RATE LEARNING_RATE; do
  [[ ${!name} =~ ^[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?$ ]] || die "$name is '${!name}', expected a number"
done
((MAX_STEPS % STEPS_PER_REFRESH == 0)) ||
  die "MAX_STEPS is $MAX_STEPS, expected a multiple of STEPS_PER_REFRESH, $STEPS_PER_REFRESH"

# The same numbers on every machine: no GPU, no hub, one thread for each half of the pair.
export CUDA_VISIBLE_DEVICES='' HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=true
PAIR_THREADS=1
ARM_GENERATOR_FLAGS=() # more of them, for every arm
lengths=(--max_seq_length "$PASSAGE_TOKENS" --max_query_length "$QUERY_TOKENS")

# shellcheck source=stages.sh
source commands/stages.sh

collection() {
  UPSTREAM=environment
  stage docstrings "${LAYOUT[raw]}/${LAYOUT[docstrings_record]}" "${LAYOUT[raw]}" "docstrings${LAYOUT[output_end]}" \
    data.docstrings --out_data_dir "$RUN/${LAYOUT[raw]}" --dev_queries "$DEV_QUERIES"

  UPSTREAM=docstrings
  stage wordpiece "${LAYOUT[tokenizer]}/${LAYOUT[tokenizer_file]}" "${LAYOUT[tokenizer]}" "wordpiece${LAYOUT[output_end]}" \
    data.wordpiece --data_dir "$RUN/${LAYOUT[raw]}" --out_dir "$RUN/${LAYOUT[tokenizer]}" --vocab_size "$VOCAB_SIZE"
  if ((dry_run == 0)); then # the new model's shape; a stage that starts from it has "config" upstream
    cat >"$STAGES/config" <<JSON
{"model_type": "static", "embedding_size": $EMBEDDING_SIZE}
JSON
    cp "$STAGES/config" "$RUN/${LAYOUT[model_config]}"
  fi

  UPSTREAM=wordpiece
  stage preprocess "${LAYOUT[preprocessed]}/${LAYOUT[collection_manifest]}" "${LAYOUT[preprocessed]}" "preprocess${LAYOUT[output_end]}" \
    data.msmarco_data --data_dir "$RUN/${LAYOUT[raw]}" --out_data_dir "$RUN/${LAYOUT[preprocessed]}" --data_type 1 \
    --model_type static --model_name_or_path "$RUN/${LAYOUT[tokenizer]}" "${lengths[@]}"

  UPSTREAM=preprocess
  stage bm25 "${LAYOUT[bm25]}/${LAYOUT[evaluation_record]}" "${LAYOUT[bm25]}" "bm25${LAYOUT[output_end]}" \
    drivers.run_bm25 --raw_data_dir "$RUN/${LAYOUT[raw]}" --data_dir "$RUN/${LAYOUT[preprocessed]}" --output_dir "$RUN/${LAYOUT[bm25]}" \
    --topk_training "$TOPK_TRAINING" --negative_sample "$NEGATIVE_SAMPLE" --negative_strategy random --seed "$SEED" \
    --keep_candidates
}

warmup() {
  local checkpoint=${LAYOUT[warmup]}/${LAYOUT[checkpoint_prefix]}$WARMUP_STEPS
  local evaluation=${LAYOUT[warmup]}/${LAYOUT[evaluation]}
  UPSTREAM="bm25 config"
  # One thread: the batches are so small that a second one would mostly wait.
  RESUMABLE=1
  OMP_NUM_THREADS=1 stage warmup "$checkpoint/config.json" "${LAYOUT[warmup]} ${LAYOUT[arms]}" "${LAYOUT[warmup]}/warmup${LAYOUT[output_end]}" \
    drivers.run_warmup --data_dir "$RUN/${LAYOUT[preprocessed]}" --bm25_dir "$RUN/${LAYOUT[bm25]}" --output_dir "$RUN/${LAYOUT[warmup]}" --do_train \
    --train_model_type static --config_name "$RUN/${LAYOUT[model_config]}" --score_scale "$SCORE_SCALE" --tokenizer_name "$RUN/${LAYOUT[tokenizer]}" \
    "${lengths[@]}" --loss in_batch --optimizer adamW --learning_rate "$WARMUP_LEARNING_RATE" --warmup_steps 100 \
    --max_steps "$WARMUP_STEPS" --save_steps "$WARMUP_STEPS" --logging_steps 100 \
    --per_gpu_train_batch_size "$WARMUP_BATCH" --seed "$SEED"
  RESUMABLE=0

  UPSTREAM=warmup
  stage warmup_eval "$evaluation/${LAYOUT[evaluation_record]}" "$evaluation" "$evaluation${LAYOUT[output_end]}" \
    drivers.run_eval --data_dir "$RUN/${LAYOUT[preprocessed]}" --model_type static \
    --model_name_or_path "$RUN/$checkpoint" --output_dir "$RUN/$evaluation" "${lengths[@]}"
}

arm_programs() { # STRATEGY SEED DIRECTORY (in RUN): sets ARM (the directory), TRAINER, GENERATOR and EVALUATION
  local checkpoint=$RUN/${LAYOUT[warmup]}/${LAYOUT[checkpoint_prefix]}$WARMUP_STEPS
  local -a lockstep=(--refresh_mode lockstep --steps_per_refresh "$STEPS_PER_REFRESH" --refresh_lag 1 --seed "$2")
  ARM=$3
  GENERATOR=(drivers.run_ann_data_gen --data_dir "$RUN/${LAYOUT[preprocessed]}" --training_dir "$RUN/$ARM/${LAYOUT[checkpoints]}"
    --init_model_dir "$checkpoint" --model_type static --output_dir "$RUN/$ARM/${LAYOUT[ann_data]}" "${lengths[@]}"
    --negative_strategy "$1" --topk_training "$TOPK_TRAINING" --negative_sample "$NEGATIVE_SAMPLE"
    --ann_chunk_factor "$ANN_CHUNK_FACTOR" "${ARM_GENERATOR_FLAGS[@]}" "${lockstep[@]}")
  TRAINER=(drivers.run_ann --data_dir "$RUN/${LAYOUT[preprocessed]}" --ann_dir "$RUN/$ARM/${LAYOUT[ann_data]}"
    --output_dir "$RUN/$ARM/${LAYOUT[checkpoints]}" --model_type static --model_name_or_path "$checkpoint" "${lengths[@]}"
    --group_size 1 --single_warmup --loss pairwise --optimizer adamW --learning_rate "$LEARNING_RATE"
    --per_gpu_train_batch_size "$BATCH" --max_steps "$MAX_STEPS" --save_steps "$STEPS_PER_REFRESH"
    --logging_steps 20 "${lockstep[@]}")
  # shellcheck disable=SC2034 # arm in stages.sh runs it
  EVALUATION=(drivers.run_eval --data_dir "$RUN/${LAYOUT[preprocessed]}" --model_type static
    --model_name_or_path "$RUN/$ARM/${LAYOUT[checkpoints]}/${LAYOUT[checkpoint_prefix]}$MAX_STEPS" --output_dir "$RUN/$ARM/${LAYOUT[evaluation]}" "${lengths[@]}"
    --ann_dir "$RUN/$ARM/${LAYOUT[ann_data]}")
}

# What the arms of one seed take of one query, in the space of the model that they all start from.
neighbourhood() { # NAME=DIRECTORY (in RUN)...
  local arm
  local -a negatives=()
  for arm in "$@"; do
    negatives+=("${arm%%=*}=$RUN/${arm#*=}/${LAYOUT[ann_data]}/${LAYOUT[first_negatives]}")
  done
  stage neighbourhood "${LAYOUT[query_map]}/${LAYOUT[query_map_record]}" "${LAYOUT[query_map]}" "neighbourhood${LAYOUT[output_end]}" \
    drivers.run_neighbourhood --data_dir "$RUN/${LAYOUT[preprocessed]}" --model_type static \
    --model_name_or_path "$RUN/${LAYOUT[warmup]}/${LAYOUT[checkpoint_prefix]}$WARMUP_STEPS" "${lengths[@]}" --negatives "${negatives[@]}" \
    --output_dir "$RUN/${LAYOUT[query_map]}"
}

# What every arm starts from. With --dry_run the commands alone.
up_to_the_warmup() {
  if ((dry_run == 0)); then
    use_venv requirements.txt
    prepare_run_dir
    # The collection is what the installed packages say.
    { "$PYTHON" -VV && cat requirements.txt; } | sha256sum >"$STAGES/environment"
  fi
  collection
  warmup
}
