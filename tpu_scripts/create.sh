#!/usr/bin/env bash
# Requests a slice from Cloud TPU as a queued resource: it starts when there is capacity.
#
#   tpu_scripts/create.sh --name=flan --zone=us-east5-b --accelerator=v6e-16 [--spot=yes]
#
#   --name         name of the queued resource and of its node
#   --zone         zone of the slice
#   --accelerator  type and size: v4-16, v5litepod-16, v5p-16, v6e-16 …
#   --runtime      software version (default: the one for the accelerator)
#   --project      Google Cloud project (default: gcloud's)
#   --spot         'yes': cheaper, but may be preempted at any time (a run resumes where it stopped)
#   --reserved     'yes': use your reservation
#   --dry_run      print the command without running it
#
# Next: tpu_scripts/watch.sh until the slice is ACTIVE, then tpu_scripts/launch.sh.
set -euo pipefail
# shellcheck source=settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

FLAGS='name zone accelerator runtime project spot reserved'
read_flags "$@"
need name zone accelerator
[ -z "$SPOT" ] || [ -z "$RESERVED" ] || fail '--spot and --reserved exclude each other'

if [ -z "$RUNTIME" ]; then
  case "$ACCELERATOR" in
    v4-*) RUNTIME=tpu-ubuntu2204-base ;;
    v5litepod-*) RUNTIME=v2-alpha-tpuv5-lite ;;
    v5p-*) RUNTIME=v2-alpha-tpuv5 ;;
    v6e-*) RUNTIME=v2-alpha-tpuv6e ;;
    *) fail "no known runtime for --accelerator=$ACCELERATOR (known: v4-, v5litepod-, v5p-, v6e-): set --runtime=VERSION" ;;
  esac
fi

queued_resources create "--node-id=$NAME" "--accelerator-type=$ACCELERATOR" "--runtime-version=$RUNTIME" \
  ${SPOT:+--spot} ${RESERVED:+--reserved}
