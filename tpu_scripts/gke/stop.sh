#!/usr/bin/env bash
# Stops a run (it saves its state first) and deletes it from the cluster.
#
#   tpu_scripts/gke/stop.sh --name=flan
#
#   --name     name of the run, as in launch.sh
#   --dry_run  print the command without running it
set -euo pipefail
# shellcheck source=../settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/../settings.sh"

FLAGS='name'
read_flags "$@"
need name

run kubectl delete jobset "$NAME" --cascade=foreground
