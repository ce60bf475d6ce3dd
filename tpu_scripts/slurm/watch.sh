#!/usr/bin/env bash
# Waits until a job runs, then follows its log. Ctrl-C does not stop the job.
#
#   tpu_scripts/slurm/watch.sh --name=flan --folder=/shared/t5flan
#
#   --name     name of the job, as in launch.sh
#   --folder   the folder, as in launch.sh, which holds the log
#   --every    seconds between checks (default: 30)
#   --dry_run  print the commands without running them
set -euo pipefail
# shellcheck source=../settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/../settings.sh"

FLAGS='name folder every'
read_flags "$@"
need name folder

while true; do
  state=$(run squeue --me "--name=$NAME" --noheader --format=%T)
  if [ -n "$DRY_RUN" ]; then
    echo "$state"
    break
  fi
  echo "$(date +%T) $NAME is ${state:-not in the queue}"
  case "$state" in
    RUNNING) break ;;
    '') fail "there is no job $NAME in the queue; its log is $FOLDER/$NAME.log" ;;
  esac
  sleep "${EVERY:-30}"
done
run tail -n 50 -F "$FOLDER/$NAME.log"
