# shellcheck shell=bash
# Sourced after env.sh by the scripts that run programs in the background: starts them with their output in a file,
# waits for them, and stops them, their workers included, when one fails or the script is told to stop.

STOP_SECONDS=${STOP_SECONDS:-120}               # from TERM to KILL: time to save the state
PEER_STOP_SECONDS=${PEER_STOP_SECONDS:-3600}    # how long the generator may outlive a trainer that is done
PROGRESS_SECONDS=${PROGRESS_SECONDS:-10}
PEER_GONE=4                                     # exit code of a program whose peer has failed or left
STATE_SAVED_CODE=75                             # and of one that was asked to stop, and has saved its state

STARTED=0  # process id of the program started last
RUNNING=() # process ids of those not yet waited for
STOPPING=0    # 1 once every program has been asked to stop
STOP_SIGNAL=TERM
WATCHES=0 WATCHED=0 # 1: the progress of a program with a log is shown; and it was, of the last
INTERRUPTED=0 # a signal's handler sets it to 1: what "wait" then says is of the signal

start() { # LOG COMMAND...: in the background, its output added to LOG, or to the script's own where LOG is "-"
  local log=$1
  shift
  # With job control a program leads a process group of its own, by which its workers are reached too.
  set -m
  if [[ $log == - ]]; then
    "$@" </dev/null &
  else
    mkdir -p "$(dirname "$log")"
    "$@" >>"$log" 2>&1 </dev/null &
  fi
  set +m
  STARTED=$!
  RUNNING+=("$STARTED")
}

is_alive() { # PID
  kill -0 "$1" 2>/dev/null
}

exit_code_of() { # PID of a program that has ended, or that may be waited for: sets CODE
  local pid
  local -a others=()
  while :; do
    INTERRUPTED=0 CODE=0
    wait "$1" || CODE=$?
    ((INTERRUPTED == 1)) || break
  done
  for pid in "${RUNNING[@]}"; do
    [[ $pid == "$1" ]] || others+=("$pid")
  done
  RUNNING=("${others[@]+"${others[@]}"}")
}

stop() { # PID...: STOP_SIGNAL to their process groups, KILL to what is left after STOP_SECONDS
  local pid deadline=$((SECONDS + STOP_SECONDS))
  for pid in "$@"; do
    kill "-$STOP_SIGNAL" -- "-$pid" 2>/dev/null || true
  done
  for pid in "$@"; do
    while kill -0 -- "-$pid" 2>/dev/null; do
      if ((SECONDS >= deadline)); then
        kill -KILL -- "-$pid" 2>/dev/null || true
        break
      fi
      sleep 0.1
    done
  done
}

stop_all() { # sets STATE_SAVED to 1 where a program answered with exit code 75
  local -a pids=("${RUNNING[@]+"${RUNNING[@]}"}")
  local pid
  STATE_SAVED=0
  ((${#pids[@]} > 0)) || return 0
  stop "${pids[@]}"
  for pid in "${pids[@]}"; do
    exit_code_of "$pid" 2>/dev/null
    ((CODE != STATE_SAVED_CODE)) || STATE_SAVED=1
  done
}

on_signal() { # NAME EXIT_CODE
  trap '' INT TERM
  printf '%s: stopped by SIG%s; run it again to resume\n' "${0##*/}" "$1" >&2
  stop_all
  ((STATE_SAVED == 0)) || exit "$STATE_SAVED_CODE"
  exit "$2"
}
trap 'on_signal INT 130' INT
trap 'on_signal TERM 143' TERM
trap stop_all EXIT

show_failure() { # WHAT EXIT_CODE LOG: in one piece, so that the lines of two programs do not mix
  printf '%s: %s failed with exit code %s; the end of %s:\n%s\n' \
    "${0##*/}" "$1" "$2" "$3" "$(tail -n 30 "$3" | sed 's/^/    /')" >&2
}

run_here() { # COMMAND...: waits for the program; returns its exit code. A signal stops it at once, as it does the others
  start - "$@"
  exit_code_of "$STARTED"
  return "$CODE"
}

run_logged() { # WHAT LOG COMMAND...: the same with its output in LOG, the end of which is shown where it fails
  local what=$1 log=$2
  shift 2
  start "$log" "$@"
  ((WATCHES == 0)) || watch "$STARTED" "$log"
  exit_code_of "$STARTED"
  if ((CODE != 0)); then
    echo failed
    show_failure "$what" "$CODE" "$log"
  fi
  return "$CODE"
}

progress_line() { # TRAINER_LOG: where the trainer is, from the newest of its JSON lines; nothing where there is none
  local line
  line=$(grep -a '^{"learning_rate"' "$1" 2>/dev/null | tail -n 1) || return 0
  if [[ $line =~ \"loss\":\ *([0-9.eE+-]+).*\"step\":\ *([0-9]+) ]]; then
    LC_ALL=C printf 'step %d, loss %.4f' "${BASH_REMATCH[2]}" "${BASH_REMATCH[1]}"
    line=$(eta_line "$1")
    [[ $line != *ETA* ]] || printf ', ETA %s' "${line##*ETA }"
  fi
}

eta_line() { # LOG: how far the program is, by the newest of its lines that say when it will end
  grep -a ', ETA [0-9]' "$1" 2>/dev/null | tail -n 1 || true
}

# While a program runs, its newest line of how far it is, every PROGRESS_SECONDS. Sets WATCHED to 1 where it showed any.
watch() { # PID LOG
  local next_line=$((SECONDS + PROGRESS_SECONDS)) shown='' line
  WATCHED=0
  while is_alive "$1"; do
    sleep 0.1
    ((SECONDS >= next_line)) || continue
    next_line=$((SECONDS + PROGRESS_SECONDS))
    line=$(eta_line "$2")
    [[ -n $line && $line != "$shown" ]] || continue
    printf '\n    %s' "$line"
    # shellcheck disable=SC2034 # end_stage in stages.sh asks
    shown=$line WATCHED=1
  done
}

# Runs trainer and generator together until both have ended. Returns 0 where both succeeded; else stops the other
# one, shows the end of the log of the one that failed first, and returns its exit code; ENDED_FIRST is its name. One
# that saved its state and stopped has not failed, but ends the pair too. They meet in DIR/checkpoints and DIR/ann_data;
# their output is added to DIR/trainer.out and DIR/generator.out.
run_pair() { # NAME DIR TRAINER_COMMAND GENERATOR_COMMAND (names of arrays)
  local name=$1 directory=$2
  local -n trainer_argv=$3 generator_argv=$4
  local -A pid=() code=() shown=()
  local role failed='' reason='' deadline='' next_line=$((SECONDS + PROGRESS_SECONDS)) line

  rm -f "$directory"/{"${LAYOUT[ann_data]}","${LAYOUT[checkpoints]}"}/"${LAYOUT[failed]}" # an earlier run's must not be taken for this one's
  start "$directory/trainer${LAYOUT[output_end]}" "${trainer_argv[@]}"
  pid[trainer]=$STARTED
  start "$directory/generator${LAYOUT[output_end]}" "${generator_argv[@]}"
  pid[generator]=$STARTED

  while ((${#code[@]} < 2)); do
    sleep 0.2
    for role in trainer generator; do
      if [[ -n ${code[$role]:-} ]] || is_alive "${pid[$role]}"; then
        continue
      fi
      exit_code_of "${pid[$role]}" 2>/dev/null
      code[$role]=$CODE
      # A program that says "the peer is gone" is not the one that failed.
      if ((CODE != 0)) && [[ -z $failed || ${code[$failed]} == "$PEER_GONE" ]]; then
        failed=$role
        deadline=$SECONDS
        ((CODE != PEER_GONE)) || deadline=$((SECONDS + 10))
        ((CODE != STATE_SAVED_CODE)) || deadline=$((SECONDS + STOPPING * STOP_SECONDS)) # both have been asked, or one
      elif [[ $role == trainer && -z $failed ]]; then
        deadline=$((SECONDS + PEER_STOP_SECONDS))
      fi
    done
    if ((${#code[@]} == 1)) && [[ -n $deadline ]] && ((SECONDS >= deadline)); then
      role=trainer
      [[ -z ${code[trainer]:-} ]] || role=generator
      if [[ -z $failed ]]; then
        failed=$role
        reason=" (still running $PEER_STOP_SECONDS s after the trainer was done)"
      fi
      stop "${pid[$role]}"
      exit_code_of "${pid[$role]}" 2>/dev/null
      code[$role]=$CODE
    fi
    if ((SECONDS >= next_line)); then
      next_line=$((SECONDS + PROGRESS_SECONDS))
      for role in trainer generator; do
        if [[ $role == trainer ]]; then
          line=$(progress_line "$directory/trainer${LAYOUT[output_end]}")
        else
          ((WATCHES == 1)) || continue
          line=$(eta_line "$directory/generator${LAYOUT[output_end]}")
        fi
        [[ -z $line || $line == "${shown[$role]:-}" ]] || printf '    %s: %s\n' "$name" "$line"
        shown[$role]=$line
      done
    fi
  done
  # shellcheck disable=SC2034 # for the caller
  ENDED_FIRST=$failed
  [[ -n $failed ]] || return 0
  if ((code[$failed] == STATE_SAVED_CODE)); then
    [[ ${code[trainer]} != 0 ]] || return 0 # nothing is left for the generator to do
    echo "$name: the $failed has stopped; its state is saved"
    return "$STATE_SAVED_CODE"
  fi
  show_failure "$name: the $failed$reason" "${code[$failed]}" "$directory/$failed${LAYOUT[output_end]}"
  return "$((code[$failed] > 0 ? code[$failed] : 1))"
}
