#!/usr/bin/env bash
# Submits a run to SLURM: one process for each GPU. It is queued again after a preemption, a failed node or its time limit,
# and resumes where it stopped.
#
#   tpu_scripts/slurm/launch.sh --name=flan --nodes=2 --gpus=8 --time=24:00:00 --folder=/shared/t5flan \
#     -- train --workdir=/shared/runs/flan --gin_file=runs/pretrain …
#
#   --name       name of the job
#   --nodes      number of nodes
#   --gpus       GPUs of each node
#   --time       time limit in SLURM's format; the run is told to save five minutes before
#   --folder     a checkout with an environment in .venv, on a disk that all nodes see
#   --partition, --account, --constraint   as sbatch takes them
#   --restarts   give up after this many restarts (default: 100)
#   --dry_run    print the job without submitting it
#   -- COMMAND…  t5flan's arguments; the workdir must be where all nodes see it
#
# Next: tpu_scripts/slurm/watch.sh --name=NAME.
set -euo pipefail
# shellcheck source=../settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/../settings.sh"

FLAGS='name nodes gpus time folder partition account constraint restarts'
read_flags "$@"
need name nodes gpus time folder
need_command
: "${RESTARTS:=100}"
need_numbers nodes gpus restarts
[ "$((NODES * GPUS))" = 1 ] || connect_processes

job="#!/usr/bin/env bash
# Exit code 0: the run has ended, 2: its command is wrong; else it is queued again and resumes.
cd $(printf %q "$FOLDER") || exit 2
srun --kill-on-bad-exit=1 .venv/bin/t5flan$(printf ' %q' "${COMMAND[@]}")
code=\$?
if [ \$code != 0 ] && [ \$code != 2 ] && [ \"\${SLURM_RESTART_COUNT:-0}\" -lt $RESTARTS ]; then
  scontrol requeue \"\$SLURM_JOB_ID\"
fi
exit \$code"

if [ -n "$DRY_RUN" ]; then
  echo "$job"
  exit
fi
sbatch "--job-name=$NAME" "--nodes=$NODES" "--ntasks-per-node=$GPUS" "--gpus-per-node=$GPUS" "--time=$TIME" \
  ${PARTITION:+"--partition=$PARTITION"} ${ACCOUNT:+"--account=$ACCOUNT"} ${CONSTRAINT:+"--constraint=$CONSTRAINT"} \
  --requeue --open-mode=append --signal=TERM@300 "--output=$FOLDER/%x.log" <<<"$job"
