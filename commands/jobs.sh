# shellcheck shell=bash
# Sourced after processes.sh by the scripts that run as jobs: how a job is asked to stop, and when Slurm starts it again.
# Without Slurm the same scripts run by bash; then nothing is started again.
#
# Slurm's warning before the time limit (#SBATCH --signal=B:USR2@300) reaches this shell alone. It writes the stop file
# that the program looks for; the program saves its state, leaves STOP_FILE.taken and ends with exit code 75. A program
# that has no stop file saves nothing on its way: it is ended at once, and its step starts over. A program whose role
# another job has taken over ends with 75 too, but without the mark; and who touches a STOP file in a program's directory
# wants it to end. Neither is started again.

setting MAX_RESTARTS 20 # how often a job puts itself back into Slurm's queue
setting RETURN_SECONDS 60 # how long to look whether the job of a peer that has ended is to come back

# In an array the plain number of one task's job is that of the whole array.
JOB=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID:-}}
JOB=${JOB:-${SLURM_JOB_ID:-}}
declare -A STOP_FILES=() # of each program of this job that looks for one
STEP_SAVES=1             # 0 while a program runs that looks for none

begin_job() { # DIR [PROGRAM...]: from now on USR2 stops the job's programs; the stop files of those named are in DIR
  local name directory=$1
  ((DRY_RUN == 0)) || return 0
  shift
  mkdir -p "$directory"
  for name in "$@"; do
    STOP_FILES[$name]=$directory/${LAYOUT[stop_prefix]}$name-${SLURM_JOB_ID:-$$}
  done
  remove_stop_files # a job that starts again has the number it had
  trap ask_to_stop USR2
  trap on_term TERM
  trap end_of_job EXIT
}

remove_stop_files() {
  local file
  for file in "${STOP_FILES[@]+"${STOP_FILES[@]}"}"; do
    rm -f "$file" "$file${LAYOUT[taken]}"
  done
}

ask_to_stop() {
  local file
  # shellcheck disable=SC2034 # exit_code_of and run_pair look at them
  INTERRUPTED=1 STOPPING=1
  echo "${0##*/}: asked to stop by SIGUSR2"
  for file in "${STOP_FILES[@]+"${STOP_FILES[@]}"}"; do
    : >"$file"
  done
  ((STEP_SAVES == 1)) || stop "${RUNNING[@]+"${RUNNING[@]}"}"
}

# Who cancels, requeues or preempts a job ends it by SIGTERM. With a time of grace before a preemption it still counts
# as running, and may requeue itself.
on_term() {
  local name
  trap '' INT TERM USR2
  say_error "stopped by SIGTERM"
  stop_all
  ((STATE_SAVED == 1)) || exit 143
  for name in "${!STOP_FILES[@]}"; do
    [[ ! -f ${STOP_FILES[$name]}${LAYOUT[taken]} ]] || requeue_or_end "$STATE_SAVED_CODE" "stopped with the state saved"
  done
  exit "$STATE_SAVED_CODE"
}

end_of_job() {
  stop_all
  remove_stop_files
}

with_stop_file() { # PROGRAM COMMAND...: sets COMMAND
  COMMAND=("${@:2}")
  [[ -z ${STOP_FILES[$1]:-} ]] || COMMAND=(env "ANCE_STOP_FILE=${STOP_FILES[$1]}" "${@:2}")
}

run_step() { # PROGRAM COMMAND...: returns where it succeeded; else ends the job in the way its exit code asks for
  local name=$1 code=0
  shift
  stop_between_steps
  with_stop_file "$name" "$@"
  run_here "${COMMAND[@]}" || code=$?
  ((code == 0)) || end_job "$name" "$code"
}

run_whole_step() { # COMMAND...: the same for a program that looks for no stop file
  stop_between_steps
  STEP_SAVES=0
  # From TERM utils.launch makes a stop file; at HUP it ends its workers.
  ! has_word utils.launch "$@" || STOP_SIGNAL=HUP
  start - "$@"
  ((STOPPING == 0)) || stop "$STARTED" # asked after the look above
  exit_code_of "$STARTED"
  # shellcheck disable=SC2034 # stop looks at it
  STEP_SAVES=1 STOP_SIGNAL=TERM
  ((CODE != 0)) || return 0
  ((STOPPING == 0)) || requeue_or_end "$STATE_SAVED_CODE" "asked to stop; the step starts over"
  exit "$CODE"
}

stop_between_steps() { # what is complete is not done again
  ((STOPPING == 0)) || requeue_or_end "$STATE_SAVED_CODE" "asked to stop between two programs"
}

# Bash takes a signal only once the command in front has ended, so flock itself must not wait for long.
take_lock() { # FILE: sets LOCK, its descriptor; jobs that start together wait here for the first
  local announced=0
  open_lock "$1" "cannot write $1: let this user write in its directory"
  while :; do
    stop_between_steps
    ! lock "$LOCK" "$1" --wait 1 || return 0
    ((announced == 1)) || echo "waiting for another job, which holds $1"
    announced=1
  done
}

end_job() { # PROGRAM EXIT_CODE
  local name=$1 code=$2
  if ((code == STATE_SAVED_CODE)); then
    if ((STOPPING == 1)) && [[ -f ${STOP_FILES[$name]}${LAYOUT[taken]} ]]; then
      requeue_or_end "$code" "stopped with the state saved"
    fi
    [[ -z $JOB ]] || say_error "not requeued: somebody else has stopped the $name; see above"
  elif ((code == PEER_GONE)); then
    return_with_peer "$name"
  fi
  exit "$code"
}

job_state() { # JOB: as Slurm's queue has it; nothing where it has left the queue
  squeue --noheader --jobs="$1" --format=%T 2>/dev/null | head -n 1 || true
}

# Slurm itself requeues a job whose node has failed, that is preempted or that was told to by scontrol: such a job is
# no longer RUNNING here, as one that is cancelled.
requeue_or_end() { # EXIT_CODE WHY [DEPENDENCY]: does not return
  local code=$1 why=$2 restarts=${SLURM_RESTART_COUNT:-0} state
  [[ -n $JOB ]] && command -v scontrol >/dev/null || exit "$code"
  state=$(job_state "$JOB")
  if [[ $state != RUNNING ]]; then
    say_error "$why; job $JOB does not requeue itself: it is ${state:-unknown} to Slurm"
    exit "$code"
  fi
  if ((restarts >= MAX_RESTARTS)); then
    say_error "$why; not requeued: it was restarted $restarts times, MAX_RESTARTS is $MAX_RESTARTS"
    exit "$code"
  fi
  echo "${0##*/}: $why; requeueing job $JOB, restart $((restarts + 1))"
  trap '' TERM USR2 # requeueing ends this job by SIGTERM
  remove_stop_files
  scontrol requeue "$JOB" || exit "$code"
  [[ -z ${3:-} ]] || scontrol update "JobId=$JOB" "Dependency=$3" || true
  exit "$code"
}

peer_job() { # DIR ROLE: the number of the job that had this role last; nothing where it was no Slurm job
  local lease
  lease=$(find "$1/${LAYOUT[leases]}" -name "$2-*.json" 2>/dev/null | sort -V | tail -n 1)
  [[ -z $lease ]] || sed -n 's/^ *"job": "\([0-9]\{1,\}\)",\{0,1\}$/\1/p' "$lease"
}

# The other program is gone. Where its job waits in the queue, or runs again, it will be back: so will this one. But the
# same exit code is that of a program that has lost one of its own processes: this one has failed, and says so.
return_with_peer() { # PROGRAM: returns where it will not
  local arm own other role peer state deadline=$((SECONDS + RETURN_SECONDS))
  [[ -n $JOB ]] && command -v squeue >/dev/null || return 0
  case $1 in
    trainer) own=${LAYOUT[checkpoints]} other=${LAYOUT[ann_data]} role=generator ;;
    generator) own=${LAYOUT[ann_data]} other=${LAYOUT[checkpoints]} role=trainer ;;
    *) return 0 ;; # it has no peer
  esac
  arm=$(dirname "${STOP_FILES[$1]}")
  if [[ -f $arm/$own/${LAYOUT[failed]} ]]; then
    say_error "not requeued: the $1 itself has failed, see $arm/$own/${LAYOUT[failed]}"
    return 0
  fi
  peer=$(peer_job "$arm/$other" "$role")
  [[ -n $peer ]] || return 0
  while :; do
    # By %A: asked for an array's first task, squeue lists the others too.
    state=$(squeue --noheader --array --jobs="$peer" --format='%A %T' 2>/dev/null | sed -n "s/^$peer //p" | head -n 1) || true
    case $state in
      PENDING | REQUEUED | REQUEUE_HOLD) requeue_or_end "$PEER_GONE" "job $peer, its peer, waits in the queue" "after:$peer" ;;
      CONFIGURING | RUNNING | SUSPENDED) requeue_or_end "$PEER_GONE" "job $peer, its peer, runs again" ;;
      COMPLETING) ;;
      *) break ;;
    esac
    ((SECONDS < deadline)) || break
    sleep 1
  done
}
