#!/usr/bin/env bash
# Waits until the first pod of a job runs, then follows its log. Ctrl-C does not stop the job.
#
#   tpu_scripts/gke/watch.sh --name=flan
#
#   --name     name of the job, as in launch.sh
#   --wait     how long to wait for the pod, in kubectl's format (default: 1h)
#   --dry-run  print the commands without running them
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../settings.sh"

FLAGS='name wait'
read_flags "$@"
need name

first="--selector=job-name=$NAME,batch.kubernetes.io/job-completion-index=0"
run kubectl wait pod "$first" --for=condition=Ready "--timeout=${WAIT:-1h}"
run kubectl logs "$first" --follow --tail=50
