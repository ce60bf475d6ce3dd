#!/usr/bin/env bash
# Stops the run on a slice (it saves its state first), then deletes the slice.
#
#   tpu_scripts/stop.sh --name=flan --zone=us-east5-b [--keep=yes]
#
#   --name, --zone, --project   the slice, as in create.sh
#   --keep                      'yes': stop only the run; the slice stays and is billed
#   --wait                      seconds to wait for the run to save and exit (default: 600)
#   --dry_run                   print the commands without running them
set -euo pipefail
# shellcheck source=settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

FLAGS='name zone project keep wait'
read_flags "$@"
need name zone

stopped=yes
run_on_workers all "cd ~/t5flan 2>/dev/null && [ -f train.pid ] && kill -TERM \$(cat train.pid) 2>/dev/null || exit 0
for i in \$(seq ${WAIT:-600}); do kill -0 \$(cat train.pid) 2>/dev/null || exit 0; sleep 1; done
echo 'the run is still saving' >&2; exit 1" || stopped=

# A slice that is queued or was preempted has no run to stop, and is deleted all the same.
if [ -z "$stopped" ] && [ "$(queued_resources describe '--format=value(state.state)')" = ACTIVE ]; then
  fail "the run on $NAME has not stopped: check it with tpu_scripts/watch.sh, then stop it again with a longer --wait"
fi
[ -n "$KEEP" ] || queued_resources delete --force --quiet
