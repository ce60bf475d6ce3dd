#!/usr/bin/env bash
# Stops a job (its run saves its state first) and deletes it from the cluster.
#
#   tpu_scripts/gke/stop.sh --name=flan
#
#   --name     name of the job, as in launch.sh
#   --dry-run  print the command without running it
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../settings.sh"

FLAGS='name'
read_flags "$@"
need name

run kubectl delete job,service "$NAME" --cascade=foreground
