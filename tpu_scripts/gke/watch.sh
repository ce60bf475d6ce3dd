#!/usr/bin/env bash
# Waits until the first pod of a job runs, then follows its log. Ctrl-C leaves the job as it is.
#
#   tpu_scripts/gke/watch.sh --name=flan
#
#   --name     of the job, as in launch.sh
#   --wait     how long to wait for the pod, as kubectl has it; 1h
#   --dry-run  prints the commands and runs nothing
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../settings.sh"

FLAGS='name wait'
read_flags "$@"
need name

first="--selector=job-name=$NAME,batch.kubernetes.io/job-completion-index=0"
run kubectl wait pod "$first" --for=condition=Ready "--timeout=${WAIT:-1h}"
run kubectl logs "$first" --follow --tail=50
