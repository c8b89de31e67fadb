# shellcheck shell=bash
# Sourced after env.sh by arm.sh, whose head says what flags a script takes: which of them go to which program.

TYPE_FLAGS='fp16 bf16 dtype' # at most one of them may be given
IS_FALSE='^([Ff]alse|[Ff]|[Nn]o?|0)$'
# shellcheck disable=SC2034 # generator_command asks
STRATEGY_FLAGS='ann_measure_topk_mrr bottom_neg bottom_only' # ANCE's and the fork's words for --negative_strategy

DRY_RUN=0
FLAGS=()            # of every program
TRAINER_FLAGS=()    # of run_ann alone
GENERATOR_FLAGS=()  # of run_ann_data_gen alone
WARMUP_FLAGS=()     # of run_warmup alone
EVALUATION_FLAGS=() # of run_eval alone
EVALUATED_AS=()     # of FLAGS, those that a model is evaluated with as it is trained

split_flags() { # FLAGS...
  local word to=every
  for word in "$@"; do
    case $word in
      --trainer | --generator | --warmup_trainer | --evaluation) to=${word#--} ;;
      --dry[_-]run | --dry[_-]run=[Tt]rue) DRY_RUN=1 ;;
      *)
        case $to in
          every) FLAGS+=("$word") ;;
          trainer) TRAINER_FLAGS+=("$word") ;;
          generator) GENERATOR_FLAGS+=("$word") ;;
          warmup_trainer) WARMUP_FLAGS+=("$word") ;;
          evaluation) EVALUATION_FLAGS+=("$word") ;;
        esac
        ;;
    esac
  done
  select_flags yes "max_seq_length max_query_length fp16_opt_level no_cuda $TYPE_FLAGS" "${FLAGS[@]+"${FLAGS[@]}"}"
  # shellcheck disable=SC2034 # evaluation_command hands it on by name
  EVALUATED_AS=("${SELECTED[@]+"${SELECTED[@]}"}")
  ((DRY_RUN == 0)) || FLAGS=(--dry_run "${FLAGS[@]+"${FLAGS[@]}"}")
}

select_flags() { # yes|no "NAMES" FLAGS...: sets SELECTED to those of these names, with their values, or to all others
  local keep=$1 names=$2 word name named=no
  SELECTED=()
  shift 2
  for word in "$@"; do
    if [[ $word == --* ]]; then
      name=${word%%=*} name=${name#--} named=no
      [[ " $names " != *" ${name//-/_} "* ]] || named=yes # the programs take hyphens too
    fi
    [[ $named != "$keep" ]] || SELECTED+=("$word")
  done
}

gives() { # "NAMES" FLAGS...: whether one of the names is among the flags, other than as false
  local place
  select_flags yes "$@"
  for place in "${!SELECTED[@]}"; do
    [[ ${SELECTED[place]} != --* || ${SELECTED[place]#*=} =~ $IS_FALSE || ${SELECTED[place + 1]:-} =~ $IS_FALSE ]] || return 0
  done
  return 1
}

# A default that cannot stand next to what the user says is omitted; a later flag of the same name wins by itself.
with_precision() { # COMMON OWN (names of arrays): sets ARGV, both and the type; what is the program's own decides
  local -n common=$1 own=$2
  ARGV=("${common[@]+"${common[@]}"}" "${own[@]+"${own[@]}"}")
  if gives "$TYPE_FLAGS" "${own[@]+"${own[@]}"}"; then
    select_flags no "$TYPE_FLAGS" "${common[@]+"${common[@]}"}"
    ARGV=("${SELECTED[@]+"${SELECTED[@]}"}" "${own[@]}")
  elif ((GPUS > 0)) && ! gives "$TYPE_FLAGS no_cuda" "${ARGV[@]+"${ARGV[@]}"}"; then
    ARGV=(--fp16 "${ARGV[@]+"${ARGV[@]}"}")
  fi
}
