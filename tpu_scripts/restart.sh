#!/usr/bin/env bash
# Keeps a run going on a slice that may be taken away: creates the slice, waits for it, launches the run, and does so again
# after a preemption or a failed host, until the run has ended. The run resumes from its workdir.
#
#   tpu_scripts/restart.sh --name=flan --zone=us-east5-b --accelerator=v6e-16 --spot=yes -- train --workdir=gs://BUCKET/flan …
#
#   --name, --zone, --accelerator, --runtime, --project, --spot, --reserved   the slice, as in create.sh
#   --every      seconds between checks (default: 60)
#   --restarts   give up after this many restarts (default: 100)
#   --dry_run    print the commands of one round without running them
#   -- COMMAND…  t5flan's arguments, as in launch.sh
#
# It runs on your machine: Ctrl-C ends the supervision, not the run. The slice stays when the run has ended: stop.sh deletes it.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=settings.sh
source "$HERE/settings.sh"

FLAGS='name zone accelerator runtime project spot reserved every restarts'
read_flags "$@"
need name zone accelerator
need_command
[[ ${EVERY:=60} =~ ^[0-9]+$ && ${RESTARTS:=100} =~ ^[0-9]+$ ]] || fail "--every=$EVERY and --restarts=$RESTARTS must be numbers"

place=("--name=$NAME" "--zone=$ZONE" ${PROJECT:+"--project=$PROJECT"})
slice=("--accelerator=$ACCELERATOR" ${RUNTIME:+"--runtime=$RUNTIME"} ${SPOT:+"--spot=$SPOT"} ${RESERVED:+"--reserved=$RESERVED"})

if [ -n "$DRY_RUN" ]; then
  "$HERE/create.sh" "${place[@]}" "${slice[@]}" --dry_run
  "$HERE/launch.sh" "${place[@]}" --dry_run -- "${COMMAND[@]}"
  run_on_workers all "$CHECK_RUN"
  exit
fi

# state: of the slice; NONE if there is none. A call that fails is not taken for a slice that is gone.
state() {
  local found
  if found=$(queued_resources describe '--format=value(state.state)' 2>&1); then
    echo "$found"
  elif [[ $found == *NOT_FOUND* || $found == *'not found'* ]]; then
    echo NONE
  else
    echo UNKNOWN
  fi
}

# run_state: 'running' or 'ended CODE' if all workers agree, else 'mixed'; fails if a worker does not answer.
run_state() {
  local found
  found=$(run_on_workers all "$CHECK_RUN") || return
  found=$(grep -E '^t5flan-run: ' <<<"$found" | sort -u)
  if [ "$(wc -l <<<"$found")" = 1 ]; then echo "${found#t5flan-run: }"; else echo mixed; fi
}

say() {
  echo "$(date +%T) $NAME $*"
}

launches=0 silent=0
launch() {
  [ "$launches" -le "$RESTARTS" ] || fail "$NAME: gave up after $RESTARTS restarts; see its log with tpu_scripts/watch.sh"
  launches=$((launches + 1))
  "$HERE/launch.sh" "${place[@]}" -- "${COMMAND[@]}" || say 'could not be launched, trying again'
}

while true; do
  case "$(state)" in
    NONE)
      say 'has no slice: requested'
      silent=0
      "$HERE/create.sh" "${place[@]}" "${slice[@]}" || say 'could not be requested, trying again'
      ;;
    FAILED | SUSPENDED)
      say 'was taken away or failed: deleted'
      silent=0
      queued_resources delete --force --quiet || say 'could not be deleted, trying again'
      continue_at_once=yes
      ;;
    ACTIVE)
      if ! now=$(run_state); then
        silent=$((silent + 1))
        say "does not answer on every host ($silent of 5)"
        if [ "$silent" -ge 5 ]; then # a host is broken: another slice
          queued_resources delete --force --quiet || say 'could not be deleted, trying again'
          silent=0
        fi
      else
        silent=0
        case "$now" in
          'ended 0') say 'has ended'; exit 0 ;;
          'ended 2') fail "$NAME: the command is wrong; see its log with tpu_scripts/watch.sh" ;;
          running) ;;
          mixed) # some hosts run, some do not: they wait for each other in vain
            say 'stopped on some hosts: stopped on all, launched again'
            "$HERE/stop.sh" "${place[@]}" --keep=yes || say 'is still saving'
            launch
            ;;
          *) say "is not running ($now): launched"; launch ;;
        esac
      fi
      ;;
  esac
  if [ -z "${continue_at_once:-}" ]; then sleep "$EVERY"; fi
  continue_at_once=
done
