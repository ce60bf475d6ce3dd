#!/usr/bin/env bash
# Waits until a slice is there, then follows the run's log on its first worker. Ctrl-C leaves both as they are.
#
#   tpu_scripts/watch.sh --name=flan --zone=us-east5-b
#
#   --name, --zone, --project   of the slice, as in create.sh
#   --every                     seconds between looks while it is waited for; 30
#   --dry-run                   prints the commands and runs nothing
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

FLAGS='name zone project every'
read_flags "$@"
need name zone

while true; do
  state=$(queued_resources describe '--format=value(state.state)')
  if [ -n "$DRY_RUN" ]; then
    echo "$state"
    break
  fi
  echo "$(date +%T) $NAME is $state"
  case "$state" in
    ACTIVE) break ;;
    FAILED | SUSPENDED | SUSPENDING | DELETING)
      fail "$NAME is $state: delete it with tpu_scripts/stop.sh and create it again; the run goes on from its workdir" ;;
  esac
  sleep "${EVERY:-30}"
done
run_on_workers 0 'tail -n 50 -F ~/t5flan/train.log'
