#!/usr/bin/env bash
# One corpus on many nodes, a part a task, without Ray:
#
#     sbatch --array=0-63 examples/slurm.sh corpus.jsonl tokens
#     sbatch --dependency=singleton --job-name=tokmill --wrap 'tokmill finalize tokens && tokmill verify tokens'
#
# The inputs and the output lie where every node sees them, or in a bucket (s3://...). A task that is preempted, killed or out of time is queued again and goes on
# from its last commit; the same submission again makes what is missing. After a submission of some tasks only (--array=3,17), the number
# of parts must be the same as before: PARTS=64.
#SBATCH --job-name=tokmill
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=4G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --output=tokmill-%A_%a.log
set -euo pipefail

inputs=("${@:1:$#-1}")
out=${!#}
part=${SLURM_ARRAY_TASK_ID:?submit with --array=0-63, or set it}
parts=${PARTS:-${SLURM_ARRAY_TASK_COUNT:?}}

# exec: the signal that Slurm sends before it kills reaches tokmill, which commits what it has.
exec tokmill tokenize "${inputs[@]}" --out "$out" --split "$part/$parts" --threads "${SLURM_CPUS_PER_TASK:-1}" --memory 3GiB
