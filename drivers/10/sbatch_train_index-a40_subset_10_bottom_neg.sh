#!/usr/bin/env bash
# One arm as a Slurm job: commands/subset_10_train-a40_bottom_neg.sh on 4 A40 or L40S, 2 for each program.
# Submit from the repository's root, where results/ takes the log, or give --output; add what your cluster asks for:
#
#     sbatch --partition=NAME drivers/10/sbatch_train_index-a40_subset_10_bottom_neg.sh [flags]
#
#SBATCH --job-name=subset_10_bottom_neg
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
root=$(dirname -- "${BASH_SOURCE:?run it with bash, not with sh}")/../..
# A link to this file, or Slurm's copy of it:
[[ -f $root/commands/env.sh ]] || root=$(dirname -- "$(readlink -f -- "$0")")/../..
[[ -f $root/commands/env.sh ]] || root=$(timeout 20 squeue -ho %o -j "${SLURM_JOB_ID-0}" 2>/dev/null | sed -n 's|/[^/]*\.sh\( .*\)*$|/../..|p;q')
[[ -f $root/commands/env.sh ]] || root=${SLURM_SUBMIT_DIR:-.}
exec bash "$root/commands/subset_10_train-a40_bottom_neg.sh" "$@"
