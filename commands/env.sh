# shellcheck shell=bash
# Sourced by every script: finds the repository and goes there, takes the settings, and knows how to start a program.
#
# A setting comes from the environment, else from commands/site.env (untracked, bash assignments), else from the
# default below: environment > site.env > default. A relative path given in the environment is taken from the
# directory the script was started in; one in site.env or in a default, from the repository.
# The programs themselves run in the repository's root: give them absolute paths.
set -euo pipefail
set +o posix # bash that was started as sh reads no <(...)
unset CDPATH # with it, cd goes elsewhere and says so

# shellcheck source=options.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/options.sh"

# A script without a help of its own answers --help with the comment at its top.
if [[ " $* " == *" --help "* || " $* " == *" -h "* ]] && ! grep -q '^usage()' "${BASH_SOURCE[-1]}"; then
  sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "${BASH_SOURCE[-1]}" | grep -v '^SBATCH'
  exit 0
fi

CALLER_DIR=$PWD
REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[[ -f $REPO/drivers/run_ann.py ]] ||
  die "$REPO holds no drivers/run_ann.py: start the script in a checkout of the repository (with sbatch: submit from its root)"
cd "$REPO"

declare -A ENVIRONMENT=()
while IFS='=' read -r -d '' name value; do
  [[ -z $name ]] || ENVIRONMENT[$name]=$value
done < <(env -0)
unset name value

# shellcheck source=/dev/null
if LC_ALL=C grep -qs $'\r$\|^\xef\xbb\xbf' commands/site.env; then # as an editor on Windows leaves it
  source <(LC_ALL=C sed $'1s/^\xef\xbb\xbf//; s/\r$//' commands/site.env)
elif [[ -f commands/site.env ]]; then
  source commands/site.env
fi

setting() { # NAME DEFAULT
  if [[ -n ${ENVIRONMENT[$1]:-} ]]; then
    printf -v "$1" '%s' "${ENVIRONMENT[$1]}"
  elif [[ -z ${!1:-} ]]; then
    printf -v "$1" '%s' "$2"
  fi
}

whole_numbers() { # NAMES of settings that are to be whole numbers
  local name
  for name in "$@"; do
    [[ ${!name} =~ ^(0|[1-9][0-9]{0,17})$ ]] || die "$name is '${!name}', expected a whole number"
  done
}

absolute() { # PATH BASE
  local home=${1%%/*}
  case $1 in
    /*) printf '%s' "$1" ;;
    "~"*) # which bash leaves as it is in quotes, and in --run_dir=~/x
      if [[ $home == "~" ]]; then home=${HOME:-}; else home=$(getent passwd "${home#"~"}" | cut -d: -f6); fi
      [[ $home == /* ]] || die "$1: there is no such user; write ./$1 for what is called so"
      printf '%s' "$home${1#"${1%%/*}"}"
      ;;
    *) printf '%s/%s' "$2" "$1" ;;
  esac
}

path_option() { # NAME DEFAULT: prints the path of --NAME, from the caller's directory, or the default, from the repository
  if [[ -n ${OPTIONS[$1]:-} ]]; then absolute "${OPTIONS[$1]}" "$CALLER_DIR"; else absolute "$2" "$REPO"; fi
}

path_setting() { # NAME DEFAULT
  local base=$REPO path
  setting "$1" "$2"
  [[ -n ${!1} ]] || return 0
  [[ -z ${ENVIRONMENT[$1]:-} ]] || base=$CALLER_DIR
  path=$(absolute "${!1}" "$base") # by itself: in another command's words it could not end the script
  printf -v "$1" '%s' "$path"
}

# As CUDA reads CUDA_VISIBLE_DEVICES: up to the first word that is no device (-1, Slurm's NoDevFiles), numbers or UUIDs
# of one kind; a device that is named twice leaves none.
visible_gpus() { # sets VISIBLE
  local word kind='^\+?[0-9]' seen=,
  local -a words=()
  VISIBLE=()
  IFS=, read -r -a words <<<"${CUDA_VISIBLE_DEVICES:-}"
  case ${words[0]:-} in
    GPU-*) kind='^GPU-' ;;
    MIG-*) kind='^MIG-' ;;
  esac
  for word in "${words[@]+"${words[@]}"}"; do
    word=${word//[[:space:]]/}
    [[ $word =~ $kind ]] || return 0
    if [[ $kind == *0-9* ]]; then
      [[ $word =~ ^\+?0*([0-9]+) ]]
      word=${BASH_REMATCH[1]} # of "1gpu" CUDA reads the number
    fi
    if [[ $seen == *,$word,* ]]; then
      VISIBLE=()
      return 0
    fi
    seen+=$word,
    VISIBLE+=("$word")
  done
}

count_gpus() {
  if [[ ${CUDA_VISIBLE_DEVICES-unset} != unset ]]; then
    visible_gpus
    echo "${#VISIBLE[@]}"
  elif [[ ${SLURM_GPUS_ON_NODE:-} =~ ^[0-9]+$ ]]; then
    echo "$SLURM_GPUS_ON_NODE"
  elif command -v nvidia-smi >/dev/null; then
    nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU ' || true
  else
    echo 0
  fi
}

default_python() {
  if [[ -x $REPO/.venv/bin/python ]]; then
    echo "$REPO/.venv/bin/python"
  else
    command -v python3 || true
  fi
}

newest_checkpoint() { # DIR: its checkpoint-S of the highest step, or nothing
  local directory
  for directory in "$1/${LAYOUT[checkpoint_prefix]}"*; do
    if [[ $directory =~ /"${LAYOUT[checkpoint_prefix]}"[0-9]+$ && -d $directory ]]; then
      printf '%s\n' "$directory"
    fi
  done | sort -V | tail -n 1
}

need_space() { # DIR MEGABYTES WHAT: die where the disk of DIR (or of the nearest parent there is) has less
  local directory=$1 columns=' [0-9]+ +[0-9]+ +([0-9]+) +([0-9]+%|-) +/' free_mb
  while [[ ! -d $directory ]]; do directory=$(dirname -- "$directory"); done
  if [[ ! $(df -Pk -- "$directory" 2>&1) =~ $columns ]]; then # before them is the file system's name, in words of any number
    say_error "warning: df does not say how much the disk of $directory has free; not checked"
    return 0
  fi
  free_mb=$((BASH_REMATCH[1] / 1024))
  ((free_mb >= $2)) ||
    die "$3 needs $2 MB, but the disk of $directory has $free_mb MB free: free some, or use a directory on another disk"
}

# flock ends with 1 where another process has the lock, and with other codes where the file system knows no locks.
lock() { # DESCRIPTOR FILE OPTION OF FLOCK...: returns 1 where another process has it; without locks, 0 and a warning
  local why code=0
  why=$(flock "${@:3}" "$1" 2>&1) || code=$?
  ((code > 1)) || return "$code"
  say_error "warning: no lock on $2, continuing without (exit code $code: ${why//$'\n'/ })"
}

open_lock() { # FILE REFUSAL: makes and opens it, and sets LOCK, its descriptor; dies with REFUSAL where it cannot be written
  { mkdir -p "$(dirname -- "$1")" && : >>"$1"; } 2>/dev/null || die "$2"
  # shellcheck disable=SC2034 # for the caller
  exec {LOCK}>>"$1"
}

use_venv() { # REQUIREMENTS_FILE: PYTHON becomes that of .venv, set up where it is not yet; a PYTHON that was given stays
  if [[ -n $PYTHON_GIVEN ]]; then
    command -v "$PYTHON" >/dev/null || die "PYTHON is $PYTHON, which cannot be run: give a Python 3.11 or newer, or omit it"
    return
  fi
  bash commands/setup_venv.sh "$1"
  PYTHON=$REPO/.venv/bin/python
}

STRATEGIES=(top top_bottom bottom random) # the arms that are compared

check_strategy() { # WORD: dies unless it is one of STRATEGIES, or all
  has_word "$1" "${STRATEGIES[@]}" all ||
    die "--strategy is '$1', expected one of ${STRATEGIES[*]} all; any other runs by submit_ance.sh, or on the docstrings by study.sh --arms NAME=WORD"
}

# The machine.
setting PYTHON '' # the interpreter of every program; where none is given, .venv's if there is one, else python3
[[ $PYTHON != */* ]] || path_setting PYTHON ''
PYTHON_GIVEN=$PYTHON
[[ -n $PYTHON ]] || PYTHON=$(default_python)
setting GPUS "$(count_gpus)"       # GPUs of this node; 0 stays on the CPU
whole_numbers GPUS
[[ $GPUS != 0 ]] || export CUDA_VISIBLE_DEVICES=''
setting CPUS "${SLURM_CPUS_PER_TASK:-$(nproc)}"
whole_numbers CPUS

# The names of the directories and files of a run, as Python has them. The interpreter that the programs will have may
# not be there yet; any Python 3 knows the names.
declare -A LAYOUT=()
read_layout() {
  local python names
  for python in python3 "$PYTHON"; do
    if command -v "$python" >/dev/null && names=$("$python" -m utils.exchange.layout 2>/dev/null) && [[ $names == LAYOUT=* ]]; then
      eval "$names" # quoted by shlex
      return
    fi
  done
  return 1
}
if ! read_layout; then
  [[ ${SETS_UP_PYTHON:-0} == 1 ]] || die "no python3 in PATH that runs utils/exchange/layout.py, expected Python 3.11 or newer: install it (Debian: apt install python3 python3-venv)"
  return 0 # what follows is for scripts that run the programs
fi

# Where things are. results/runs/ is not tracked.
path_setting RUNS_DIR results/runs
path_setting RAW_DATA_DIR "$RUNS_DIR/msmarco/${LAYOUT[raw]}"              # MS MARCO's files, from data_download.sh
path_setting DATA_DIR "$RUNS_DIR/msmarco/${LAYOUT[preprocessed]}"         # what data.msmarco_data makes of them
path_setting SUBSET_RAW_DIR "$RUNS_DIR/msmarco_10/${LAYOUT[raw]}"         # the 10% subset of RAW_DATA_DIR
path_setting SUBSET_DATA_DIR "$RUNS_DIR/msmarco_10/${LAYOUT[preprocessed]}"
path_setting RUN_DIR ''                                        # a run's arms, warmup and report; see run_dir in arm.sh
path_setting WARMUP_DIR "${RUN_DIR:-$RUNS_DIR/msmarco}/${LAYOUT[warmup]}" # run_train_warmup.sh's checkpoints
path_setting WARMUP_CHECKPOINT ''                              # where an arm starts; default: the newest in WARMUP_DIR
# shellcheck disable=SC2034 # need_warmup in arm.sh asks
WARMUP_CHECKPOINT_GIVEN=$WARMUP_CHECKPOINT
[[ -n $WARMUP_CHECKPOINT ]] || WARMUP_CHECKPOINT=$(newest_checkpoint "$WARMUP_DIR")

# What is trained. ANCE (FirstP) on MS MARCO passages; DATA_TYPE 0 is documents.
setting MODEL_TYPE rdot_nll
setting MODEL roberta-base # a hub name or a directory: where the warmup starts, and its tokenizer
setting SOURCE msmarco # format of RAW_DATA_DIR: beir, dpr, another word of --source, or auto
setting DATA_TYPE 1
setting MAX_SEQ_LENGTH 512
setting MAX_QUERY_LENGTH 64
setting TEXT_PROFILE '' # how texts become tokens, see docs/text_profiles.md; default: as MODEL has it, else hf

export PYTHONUNBUFFERED=1
export PYTHONUTF8=1 # a path is UTF-8 to torch, safetensors and tokenizers, whatever the locale

command_for() { # PROCESSES MODULE FLAGS...: sets COMMAND, the program on one process, or on one for each of several GPUs
  local processes=$1 threads
  shift
  [[ -n $PYTHON ]] || die "no python3 found: install Python 3.11 or newer, then run commands/setup_venv.sh"
  if ((processes <= 1)) || has_word --dry_run "$@"; then
    COMMAND=(env "OMP_NUM_THREADS=${OMP_NUM_THREADS:-$CPUS}" "$PYTHON" -m "$@")
  else
    threads=$((CPUS / processes > 0 ? CPUS / processes : 1))
    # torchrun, which utils.launch is in front of, would by itself set OMP_NUM_THREADS to 1.
    COMMAND=(env "OMP_NUM_THREADS=${OMP_NUM_THREADS:-$threads}" "$PYTHON" -m utils.launch --processes "$processes" "$@")
  fi
}

launch() { # PROCESSES MODULE FLAGS...: runs the program and waits for it
  command_for "$@"
  "${COMMAND[@]}"
}
