#!/usr/bin/env bash
# Installs this checkout on every worker of a slice and starts a run there, which continues after you log out.
#
#   tpu_scripts/launch.sh --name=flan --zone=us-east5-b -- train --workdir=gs://BUCKET/flan --gin_file=runs/pretrain …
#
#   --name, --zone, --project   the slice, as in create.sh
#   --dry_run                   print the commands without running them
#   -- COMMAND…                 t5flan's arguments; the workdir must be on gs://, where all workers see it
#
# Run the same command again to resume a stopped run. Next: tpu_scripts/watch.sh.
set -euo pipefail
# shellcheck source=settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

FLAGS='name zone project'
read_flags "$@"
need name zone
need_command

# All workers work on one thing, so they first connect to each other.
connect_processes

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
ARCHIVE=${TMPDIR:-/tmp}/t5flan-$NAME.tar.gz
run tar -czf "$ARCHIVE" -C "$ROOT" setup.py pyproject.toml t5flan gin tasks
run gcloud compute tpus tpu-vm scp "$ARCHIVE" "$NAME:t5flan.tar.gz" "--zone=$ZONE" ${PROJECT:+"--project=$PROJECT"} --worker=all
[ -n "$DRY_RUN" ] || rm -f "$ARCHIVE"

run_on_workers all 'set -e; mkdir -p ~/t5flan && tar -xzf ~/t5flan.tar.gz -C ~/t5flan; cd ~/t5flan
command -v python3.11 >/dev/null || { sudo apt-get update -q && sudo apt-get install -qy python3.11 python3.11-venv; }
[ -d .venv ] || python3.11 -m venv .venv
.venv/bin/python -m pip install --quiet ".[tpu]"'

run_on_workers all "cd ~/t5flan; if [ -f train.pid ] && kill -0 \$(cat train.pid) 2>/dev/null; then echo 'a run is in progress: stop it first' >&2; exit 1; fi
rm -f train.exit
nohup bash -c '.venv/bin/t5flan \"\$@\" & child=\$!; trap \"kill -TERM \$child\" TERM; wait \$child; code=\$?
[ \$code -le 128 ] || { wait \$child; code=\$?; }; echo \$code > train.exit' t5flan $(printf '%q ' "${COMMAND[@]}")> train.log 2>&1 < /dev/null & echo \$! > train.pid"
