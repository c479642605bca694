#!/usr/bin/env bash
# One corpus on many nodes, a part a task, without Ray:
#
#     job=$(sbatch --parsable --array=0-63 examples/slurm.sh corpus.jsonl tokens)
#     sbatch --dependency=afterok:$job --wrap 'tokmill finalize tokens && tokmill verify tokens'
#
# The inputs and the output lie where every node sees them, or in a bucket (s3://...). Tasks are counted from 0. A task whose node fails,
# or that is preempted, is queued again by Slurm (--requeue); one that runs out of time queues itself again two minutes before (--signal). Each goes on from its
# last commit, and the same submission again makes what is missing. After a submission of some tasks only (--array=3,17), the number of
# parts must be the same as before: PARTS=64.
#SBATCH --job-name=tokmill
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=4G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
#SBATCH --output=tokmill-%A_%a.log
set -euo pipefail

if (($# < 2)); then
    echo "usage: sbatch --array=0-63 $0 INPUT... DIR" >&2
    exit 2
fi
inputs=("${@:1:$#-1}")
out=${!#}
part=${SLURM_ARRAY_TASK_ID:?submit with --array=0-63; by hand, set this and PARTS}
parts=${PARTS:-${SLURM_ARRAY_TASK_COUNT:?submit with --array=0-63; by hand, set PARTS}}
if ((${SLURM_ARRAY_TASK_MIN:-0} > 0 && ${SLURM_ARRAY_TASK_MAX:-0} >= parts)); then
    echo "parts are counted from 0: submit with --array=0-$((parts - 1)), or say with PARTS how many there are" >&2
    exit 2
fi

tokmill tokenize "${inputs[@]}" --out "$out" --part "$part/$parts" --threads "${SLURM_CPUS_PER_TASK:-1}" --memory 3GiB &
run=$!

# Out of time: what is done is committed, and the task goes on later.
stop() {
    kill -TERM "$run"
    wait "$run" || true
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_${part}" || true
    exit 143
}
trap stop TERM
wait "$run"
