#!/usr/bin/env bash
# The warmup checkpoint: on MS MARCO's triples where they have been downloaded, else on BM25 negatives.
# ANCE's published values for passages; flags given here come after them and win.
#
#     bash commands/run_train_warmup.sh [--max_steps 150000 ...]
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
[[ -f $here/env.sh ]] || here=${SLURM_SUBMIT_DIR:-.}/commands # Slurm runs a copy of this file
# shellcheck source=arm.sh
source "$here/arm.sh"

path_setting BM25_DIR "$RUNS_DIR/msmarco/bm25"
path_setting TRIPLES "$RAW_DATA_DIR/triples.train.small.tsv"
path_setting RERANK_FILE "$RAW_DATA_DIR/top1000.dev"

split_flags "$@"
need_data
negatives=(--bm25_dir "$BM25_DIR")
if [[ -f $TRIPLES ]]; then
  negatives=(--triples "$TRIPLES")
  [[ ! -f $RERANK_FILE ]] || negatives+=(--rerank_file "$RERANK_FILE")
elif [[ ! -f $BM25_DIR/ann_ndcg_0 && $DRY_RUN == 0 ]]; then # written last
  command_for 1 drivers.run_bm25 --raw_data_dir "$RAW_DATA_DIR" --data_dir "$DATA_DIR" --output_dir "$BM25_DIR"
  run_here "${COMMAND[@]}"
fi
command_for "$GPUS" drivers.run_warmup --data_dir "$DATA_DIR" "${negatives[@]}" --output_dir "$WARMUP_DIR" \
  --train_model_type "$MODEL_TYPE" --model_name_or_path "$MODEL" \
  --do_train --evaluate_during_training --max_seq_length 128 --max_query_length "$MAX_QUERY_LENGTH" \
  --optimizer lamb --learning_rate 2e-4 --warmup_steps 1000 --per_gpu_train_batch_size 32 \
  --gradient_accumulation_steps 1 --num_train_epochs 2.0 --expected_train_size 35000000 \
  --per_gpu_eval_batch_size 256 --logging_steps 1000 --logging_steps_per_eval 20 --save_steps 30000 --seed "$SEED" \
  "${PRECISION[@]+"${PRECISION[@]}"}" "${FLAGS[@]+"${FLAGS[@]}"}" "${TRAINER_FLAGS[@]+"${TRAINER_FLAGS[@]}"}"
exec "${COMMAND[@]}"
