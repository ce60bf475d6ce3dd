#!/usr/bin/env bash
# Asks Cloud TPU for a slice, as a queued resource: it comes up when there is room.
#
#   tpu_scripts/create.sh --name=flan --zone=us-east5-b --accelerator=v6e-16 [--spot=yes]
#
#   --name         of the queued resource and of its node
#   --zone         where
#   --accelerator  type and size: v4-16, v5litepod-16, v5p-16, v6e-16 …
#   --runtime      software version; by default the one for that accelerator
#   --project      by default gcloud's own
#   --spot         'yes': cheaper, may be taken away at any time (a run goes on where it stopped)
#   --reserved     'yes': out of your reservation
#   --dry-run      prints the command and runs nothing
#
# Next: tpu_scripts/watch.sh until it is ACTIVE, then tpu_scripts/launch.sh.
set -euo pipefail
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
    *) fail "no runtime is known for --accelerator=$ACCELERATOR (v4-, v5litepod-, v5p-, v6e-): give --runtime=VERSION" ;;
  esac
fi

queued_resources create "--node-id=$NAME" "--accelerator-type=$ACCELERATOR" "--runtime-version=$RUNTIME" \
  ${SPOT:+--spot} ${RESERVED:+--reserved}
