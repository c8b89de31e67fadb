#!/usr/bin/env bash
# A real Slurm of two virtual nodes on this machine, for the tests; as root, without systemd or cgroups.
#
#     tests/slurm/cluster.sh up DIR      start munged, slurmctld and two slurmd, with all their files in DIR
#     tests/slurm/cluster.sh down DIR    stop them and what they started, and remove DIR
#
# Then SLURM_CONF=DIR/slurm.conf leads sbatch, squeue and scontrol to it.
set -eu
here=$(dirname -- "${BASH_SOURCE:?run it with bash, not with sh}")
set -o pipefail
here=$(CDPATH='' cd -- "$here" && pwd)

# shellcheck source=../../commands/options.sh
source "$here/../../commands/options.sh"
START_SECONDS=${START_SECONDS:-60}
PATH=$PATH:/usr/sbin:/sbin

free_port() { # sets PORT: one that nobody answers on
  while :; do
    PORT=$((20000 + (RANDOM << 1 ^ RANDOM) % 10000))
    [[ $PORT != "${CTLD_PORT:-}" && $PORT != "${N1_PORT:-}" ]] || continue
    (: <"/dev/tcp/127.0.0.1/$PORT") 2>/dev/null || return 0
  done
}

write_configuration() {
  local host
  host=$(hostname)
  free_port && CTLD_PORT=$PORT
  free_port && N1_PORT=$PORT
  free_port && N2_PORT=$PORT
  mkdir -p "$dir"/{state,spool-n1,spool-n2,gpus}
  # Any file counts as a device while cgroups do not guard it.
  touch "$dir"/gpus/gpu{0,1,2,3}
  (umask 077 && head -c 1024 /dev/urandom >"$dir/munge.key")
  sed -e "s|@DIR@|$dir|g; s|@HOST@|${host%%.*}|g; s|@CTLD_PORT@|$CTLD_PORT|g; s|@N1_PORT@|$N1_PORT|g" \
    -e "s|@N2_PORT@|$N2_PORT|g; s|@CPUS@|${NODE_CPUS:-16}|g" "$here/slurm.conf.in" >"$dir/slurm.conf"
  echo "Name=gpu Type=a40 File=$dir/gpus/gpu[0-3]" >"$dir/gres.conf"
}

start() { # NAME COMMAND...: a session of its own, its process id in DIR/NAME.started
  local name=$1
  shift
  setsid env ANCE_TEST_CLUSTER=1 "$@" >>"$dir/$name.out" 2>&1 </dev/null &
  echo $! >"$dir/$name.started"
}

show_logs() {
  local log
  for log in "$dir"/*.out "$dir"/*.log; do
    [[ ! -s $log ]] || tail -n 5 "$log" | sed "s|^|${log##*/}: |" >&2
  done
}

up() {
  local program
  ((EUID == 0)) || die "this user is not root, and slurmd must be: run as root"
  for program in munged slurmctld slurmd sbatch; do
    command -v "$program" >/dev/null || die "$program is not installed: apt-get install slurm-wlm munge"
  done
  [[ $dir != *[[:space:]]* ]] || die "'$dir' has a space in it, expected none: Slurm cannot read such paths"
  [[ ! -e $dir/slurm.conf ]] || die "$dir/slurm.conf exists: run '$0 down $dir' first"
  ((${#dir} < 80)) || die "$dir is ${#dir} characters long, expected less than 80: it must hold a socket"
  mkdir -p "$dir"
  write_configuration
  export SLURM_CONF=$dir/slurm.conf

  # --force: the directories above DIR may be anybody's to write, as that of temporary files is.
  start munged munged --foreground --force --num-threads=2 --key-file="$dir/munge.key" --socket="$dir/munge.socket" \
    --pid-file="$dir/munged.pid" --log-file="$dir/munged.log" --seed-file="$dir/munge.seed"
  wait_for "munged" test -S "$dir/munge.socket"
  start slurmctld slurmctld -D -i
  start slurmd-n1 slurmd -D -N n1
  start slurmd-n2 slurmd -D -N n2
  wait_for "both nodes" nodes_are_idle
  sinfo -o '%P %n %T %G'
}

nodes_are_idle() {
  [[ $(sinfo -h -N -o '%N %T' 2>/dev/null | sort -u) == $'n1 idle\nn2 idle' ]]
}

wait_for() { # WHAT COMMAND...
  local what=$1 deadline=$((SECONDS + START_SECONDS))
  shift
  until "$@"; do
    if ((SECONDS >= deadline)); then
      show_logs
      down
      die "$what: not there after $START_SECONDS s"
    fi
    sleep 0.2
  done
}

# What this cluster started: the daemons, the slurmstepd of running jobs, and the jobs, which are sessions of their own.
ours() { # prints process ids
  local process
  for process in /proc/[0-9]*; do
    process=${process#/proc/}
    [[ $process != "$$" && $process != "$BASHPID" ]] || continue
    if grep -qzxF "SLURM_CONF=$dir/slurm.conf" "/proc/$process/environ" 2>/dev/null &&
      grep -qzE '^(SLURM_JOB_ID|ANCE_TEST_CLUSTER)=' "/proc/$process/environ" 2>/dev/null; then
      echo "$process"
    fi
  done
}

is_running() { # PID; a zombie, which the first process of a container may never reap, is not
  [[ -d /proc/$1 && $(sed -n 's/^State:[[:space:]]*//p' "/proc/$1/status" 2>/dev/null) != Z* ]]
}

down() {
  local file pid deadline
  local -a pids=()
  if [[ -S $dir/munge.socket && -f $dir/slurm.conf ]]; then
    SLURM_CONF=$dir/slurm.conf timeout 10 scancel --state=PENDING --user=root 2>/dev/null || true
    SLURM_CONF=$dir/slurm.conf timeout 10 scancel --signal=KILL --full --user=root 2>/dev/null || true
  fi
  for file in "$dir"/slurmd-n1.started "$dir"/slurmd-n2.started "$dir"/slurmctld.started "$dir"/munged.started; do
    [[ ! -f $file ]] || pids+=("$(cat "$file")")
  done
  mapfile -t -O "${#pids[@]}" pids < <(ours)
  ((${#pids[@]} == 0)) || kill -TERM "${pids[@]}" 2>/dev/null || true
  deadline=$((SECONDS + 10))
  for pid in "${pids[@]+"${pids[@]}"}"; do
    while is_running "$pid"; do
      ((SECONDS < deadline)) || kill -KILL "$pid" 2>/dev/null || true
      sleep 0.1
    done
  done
  mapfile -t pids < <(ours)
  ((${#pids[@]} == 0)) || kill -KILL "${pids[@]}" 2>/dev/null || true
  rm -rf "$dir"
}

[[ $# == 2 && ($1 == up || $1 == down) && -n $2 ]] || die "usage: ${0##*/} up|down DIR"
case $2 in
  /*) dir=$2 ;;
  *) dir=$PWD/$2 ;;
esac
"$1"
