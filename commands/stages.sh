# shellcheck shell=bash
# Sourced by embedded.sh and collection.sh, which set RUN (the run's directory), dry_run and STAGE_COUNT: the stages of a run.
# One that is complete is reused where its command and its inputs are the same.

dry_run=${dry_run:-0}
STAGES=$RUN/${LAYOUT[stages]} # a file for each complete stage, first the hash of its command and of the files of those it builds on

prepare_run_dir() {
  if [[ -d $RUN && ! -d $STAGES && -n $(ls -A "$RUN") ]]; then
    die "$RUN is not empty and is not a run of this script: give another --run_dir"
  fi
  need_space "$RUN" "$RUN_SPACE_MB" "$RUN"
  open_lock "$STAGES/.lock" "cannot write in $RUN: give a --run_dir that this user may write"
  lock "$LOCK" "$STAGES/.lock" --nonblock || die "another ${0##*/} is working in $RUN: wait for it, or give another --run_dir"
}

stamp_of() { # WORDS...: the hash of the stage's words and of the stamps of the stages it builds on (UPSTREAM)
  local name
  {
    printf '%s\0' "$@"
    for name in $UPSTREAM; do
      cat "$STAGES/$name"
    done
  } | sha256sum | cut -d' ' -f1
}

NUMBER=0
ARMS_BUILD_ON=warmup # the stages that every arm builds on
RESUMABLE=0 # 1 around the stages whose programs resume from what a killed one has published

stage_is_complete() { # NAME ARTEFACT
  [[ -s $RUN/$2 && $(head -n 1 "$STAGES/$1" 2>/dev/null) == "$STAMP" ]]
}

# Sets COMPLETE and RESUMED. Where COMPLETE is 0, what an outdated run of the stage left has been removed, and what an
# interrupted one left too, unless the stage's programs resume from there (RESUMABLE): then RESUMED is 1.
begin_stage() { # NAME ARTEFACT "OUTPUTS" WORDS... (ARTEFACT and OUTPUTS relative to RUN)
  local name=$1 artefact=$2 output
  NUMBER=$((NUMBER + 1))
  COMPLETE=1 RESUMED=0
  STAMP=$(stamp_of "${@:4}")
  printf '[%2d/%d] %-15s' "$NUMBER" "$STAGE_COUNT" "$name"
  if stage_is_complete "$name" "$artefact"; then
    echo '  reused'
    return
  fi
  COMPLETE=0
  STAGE_START=$SECONDS
  rm -f "$RUN"/{"${LAYOUT[report_json]}","${LAYOUT[report_markdown]}","${LAYOUT[report_html]}"} # the report was of the run as it was
  if ((RESUMABLE == 1)) && [[ $(cat "$STAGES/$name.begun" 2>/dev/null) == "$STAMP" ]]; then
    printf '(resumed) '
    RESUMED=1
    return
  fi
  [[ ! -f $STAGES/$name ]] || printf '(settings or inputs have changed: redone) '
  rm -f "$STAGES/$name"
  for output in $3; do
    rm -rf "${RUN:?}/$output"
  done
  printf '%s\n' "$STAMP" >"$STAGES/$name.begun"
}

end_stage() { # NAME ARTEFACT LOG
  [[ -s $RUN/$2 ]] || die "$1 ended without writing $RUN/$2; see $3"
  # The second line differs each time, so that what builds on a stage is redone when the stage is.
  printf '%s\n%s\n' "$STAMP" "$(date +%s.%N)" >"$STAGES/.new"
  mv "$STAGES/.new" "$STAGES/$1"
  ((WATCHED == 0)) || printf '\n%23s' ''
  WATCHED=0
  printf '%4d s  %s\n' $((SECONDS - STAGE_START)) "$3"
}

stage() { # NAME ARTEFACT "OUTPUTS" LOG MODULE FLAGS...
  local name=$1 artefact=$2 outputs=$3 log=$RUN/$4
  if ((dry_run == 1)); then
    printf '%q ' "${@:5}" && echo
    return
  fi
  begin_stage "$name" "$artefact" "$outputs" "${@:5}"
  ((COMPLETE == 0)) || return 0
  ((RESUMED == 1)) || rm -f "$log"
  command_for 1 "${@:5}"
  run_logged "$name" "$log" "${COMMAND[@]}" || exit
  end_stage "$name" "$artefact" "$log"
}

# Trainer and generator as two processes that meet in the arm's directory alone. Both start at once: the trainer is ready
# by the time that the first negatives are. arm_programs is the sourcing script's.
# shellcheck disable=SC2034 # run_pair takes trainer and generator by name
arm() { # STAGE STRATEGY SEED DIRECTORY (in RUN)
  local -a generator trainer
  arm_programs "${@:2}"
  if ((dry_run == 1)); then
    printf '%q ' "${TRAINER[@]}" && echo
    printf '%q ' "${GENERATOR[@]}" && echo
  else
    UPSTREAM=$ARMS_BUILD_ON
    RESUMABLE=1
    begin_stage "$1" "$ARM/${LAYOUT[checkpoints]}/${LAYOUT[done]}" "$ARM" "${TRAINER[@]}" "${GENERATOR[@]}"
    RESUMABLE=0
    if ((COMPLETE == 0)); then
      echo
      OMP_NUM_THREADS=$PAIR_THREADS command_for 1 "${TRAINER[@]}"
      trainer=("${COMMAND[@]}")
      OMP_NUM_THREADS=$PAIR_THREADS command_for 1 "${GENERATOR[@]}"
      generator=("${COMMAND[@]}")
      run_pair "$1" "$RUN/$ARM" trainer generator || exit
      printf '%23s' ''
      end_stage "$1" "$ARM/${LAYOUT[checkpoints]}/${LAYOUT[done]}" "$RUN/$ARM/{trainer,generator}${LAYOUT[output_end]}"
    fi
  fi

  UPSTREAM=$1
  stage "$1.eval" "$ARM/${LAYOUT[evaluation]}/${LAYOUT[evaluation_record]}" "$ARM/${LAYOUT[evaluation]}" "$ARM/${LAYOUT[evaluation]}${LAYOUT[output_end]}" \
    "${EVALUATION[@]}"
}
