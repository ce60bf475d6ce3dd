#!/usr/bin/env bash
# Waits until a slice is active, then follows the run's log on its first worker. Ctrl-C stops neither of them.
#
#   tpu_scripts/watch.sh --name=flan --zone=us-east5-b
#
#   --name, --zone, --project   the slice, as in create.sh
#   --every                     seconds between checks of its state (default: 30)
#   --dry_run                   print the commands without running them
set -euo pipefail
# shellcheck source=settings.sh
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
      fail "$NAME is $state: delete it with tpu_scripts/stop.sh and create it again; the run resumes from its workdir" ;;
  esac
  sleep "${EVERY:-30}"
done
run_on_workers 0 'tail -n 50 -F ~/t5flan/train.log'
