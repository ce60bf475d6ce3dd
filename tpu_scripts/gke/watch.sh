#!/usr/bin/env bash
# Follows the log of a run's first pod, also after restarts, until the run has ended. Ctrl-C does not stop the run.
#
#   tpu_scripts/gke/watch.sh --name=flan
#
#   --name     name of the run, as in launch.sh
#   --wait     how long to wait for the pod, in kubectl's format (default: 1h)
#   --every    seconds between checks (default: 10)
#   --dry_run  print the commands of one round without running them
set -euo pipefail
# shellcheck source=../settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/../settings.sh"

FLAGS='name wait every'
read_flags "$@"
need name

first="--selector=jobset.sigs.k8s.io/jobset-name=$NAME,jobset.sigs.k8s.io/job-index=0"
first="$first,batch.kubernetes.io/job-completion-index=0"
while true; do
  if run kubectl wait pod "$first" --for=condition=Ready "--timeout=${WAIT:-1h}"; then
    run kubectl logs "$first" --follow --tail=50 || true # a pod that is taken away ends its log
  fi
  state=$(run kubectl get jobset "$NAME" '-o=jsonpath={.status.terminalState}/{.status.restarts}')
  if [ -n "$DRY_RUN" ]; then
    echo "$state"
    exit
  fi
  case "$state" in
    Completed/*) echo "$NAME has ended"; exit 0 ;;
    Failed/*) fail "$NAME has failed after ${state#*/} restarts: see 'kubectl describe jobset $NAME'" ;;
  esac
  echo "$(date +%T) $NAME: ${state#*/} restarts"
  sleep "${EVERY:-10}"
done
