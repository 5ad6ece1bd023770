#!/bin/bash
#
# A task of a sweep's job array: runs one point, and requeues itself if that was cut
# short. Nothing is written into this file; launch/slurm.py hands over, as arguments,
#   FOLDER    the sweep's folder
#   CAP       how often a task may be requeued
#   FIRST     the number of task 0's point
#   COMMAND…  what runs a point, but for its --index
set -u
folder=$1 cap=$2 first=$3
shift 3

# Not $SLURM_JOB_ID, which for one of the tasks is the job of them all.
task="${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
restarts=${SLURM_RESTART_COUNT:-0}

[ -e "$folder/CANCELLED" ] && exit 1
# What srun no longer takes over by itself.
[ -n "${SLURM_CPUS_PER_TASK:-}" ] && export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

index=$((first + SLURM_ARRAY_TASK_ID))
run=$(printf '%s/%04d-' "$folder" "$index")

# One that dies ends the others, but not at once: the exit code is the highest of all, so
# that killing them would hide how the first ended.
srun --kill-on-bad-exit=0 --wait=60 "$@" --index="$index"
code=$?

case $code in
  75 | 143 | 134 | 137) # Saved; TERM before it could; ended by a peer's end; killed.
    if [ -e "$folder/CANCELLED" ]; then
      echo "cancelled: not requeued" >&2
    elif [ $code -eq 134 ] && ls "$run"*/FAILED > /dev/null 2>&1; then
      echo "failed, and its peers with it: not requeued" >&2
    elif [ "$restarts" -ge "$cap" ]; then
      echo "requeued $restarts times, which is --max_requeues: not again" >&2
    else
      echo "requeued: $((restarts + 1)) of at most $cap times" >&2
      scontrol requeue "$task" && sleep 60 # Slurm ends this script meanwhile.
    fi
    ;;
esac
exit $code
