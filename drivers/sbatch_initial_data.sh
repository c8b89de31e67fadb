#!/usr/bin/env bash
# The first negatives of an arm as a Slurm job: commands/run_initial_data.sh on 4 A40 or L40S.
# Submit from the repository's root, where results/ takes the log, or give --output; add what your cluster asks for:
#
#     STRATEGY=top sbatch --partition=NAME drivers/sbatch_initial_data.sh [flags]
#
#SBATCH --job-name=ance_initial_data
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=4
#SBATCH --constraint=a40|l40s
#SBATCH --mem=300G
#SBATCH --time=7-00:00:00
#SBATCH --signal=B:USR2@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=results/%x-%j.out
set -eu
# The repository: of this file, or of the file that it is a link to, or that Slurm has made this copy of.
found() { for REPO in "$(dirname -- "$1")"/{..,../..}; do [[ -L $1 || ! -f $REPO/commands/env.sh ]] || return 0; done; return 1; }
found "${BASH_SOURCE:?run it with bash, not with sh}" || found "$(readlink -f -- "$0")" ||
  found "$(timeout 20 squeue -ho %o -j "${SLURM_JOB_ID:-0}" 2>/dev/null | sed -n 's|/[^/]*\.sh\( .*\)*$||p;q')/." || REPO=${SLURM_SUBMIT_DIR:-.}
exec bash "$REPO/commands/run_initial_data.sh" "$@"
