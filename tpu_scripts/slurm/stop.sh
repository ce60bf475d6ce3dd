#!/usr/bin/env bash
# Stops a job: its run saves its state and is not queued again.
#
#   tpu_scripts/slurm/stop.sh --name=flan
#
#   --name     name of the job, as in launch.sh
#   --wait     seconds to wait for the run to save (default: 600)
#   --dry_run  print the commands without running them
set -euo pipefail
# shellcheck source=../settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/../settings.sh"

FLAGS='name wait'
read_flags "$@"
need name

# The processes save on SIGTERM; then the job is queued again, where it is cancelled.
run scancel --me "--name=$NAME" --signal=TERM
for ((second = 0; second < ${WAIT:-600}; second++)); do
  [ -z "$DRY_RUN" ] || break
  [ "$(squeue --me "--name=$NAME" --noheader --format=%T)" = RUNNING ] || break
  sleep 1
done
run scancel --me "--name=$NAME"
