#!/usr/bin/env bash
# Starts a run as a JobSet on TPU node pools of kubectl's current GKE cluster. A preempted or failed pod restarts all of them,
# and the run resumes where it stopped. The cluster needs JobSet (https://jobset.sigs.k8s.io), 0.6 or later.
#
#   tpu_scripts/gke/launch.sh --name=flan --image=REGISTRY/t5flan --accelerator=tpu-v5-lite-podslice --topology=4x4 \
#     --hosts=4 --chips=4 -- train --workdir=gs://BUCKET/flan --gin_file=runs/pretrain …
#
#   --name         name of the run
#   --image        a container image with Python and `t5flan[tpu]` installed
#   --accelerator  the node pool's accelerator: tpu-v4-podslice, tpu-v5-lite-podslice, tpu-v5p-slice, tpu-v6e-slice
#   --topology     the slice's topology: 4x4, 2x2x4 …
#   --hosts        machines in the slice, with one pod each
#   --chips        TPU chips per machine
#   --slices       number of slices (default: 1)
#   --restarts     give up after this many restarts (default: 100)
#   --spot         'yes': spot machines
#   --dry_run      print the job without applying it
#   -- COMMAND…    t5flan's arguments; the workdir must be on gs://, where all pods see it
#
# Next: tpu_scripts/gke/watch.sh --name=NAME.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=../settings.sh
source "$HERE/../settings.sh"

FLAGS='name image accelerator topology hosts chips slices restarts spot'
read_flags "$@"
need name image accelerator topology hosts chips
need_command
: "${SLICES:=1}" "${RESTARTS:=100}"
need_numbers hosts chips slices restarts
[[ $NAME =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ && ${#NAME} -le 40 ]] ||
  fail "--name=$NAME is not a valid Kubernetes name: use a-z, 0-9 and -, at most 40"
for flag in image accelerator topology; do
  variable=$(variable_of "$flag")
  [[ ${!variable} =~ ^[-a-zA-Z0-9_./:@]+$ ]] || fail "--$flag='${!variable}' has characters that no such name has"
done
[ "$((HOSTS * SLICES))" = 1 ] || connect_processes

# The command as a JSON list, which is YAML too: any character can be quoted.
words='"t5flan"'
for word in "${COMMAND[@]}"; do
  word=${word//\\/\\\\}
  words="$words, \"${word//\"/\\\"}\""
done

job=$(<"$HERE/job.yaml")
job=${job//'{{NAME}}'/"$NAME"}
job=${job//'{{HOSTS}}'/"$HOSTS"}
job=${job//'{{CHIPS}}'/"$CHIPS"}
job=${job//'{{IMAGE}}'/"$IMAGE"}
job=${job//'{{ACCELERATOR}}'/"$ACCELERATOR"}
job=${job//'{{TOPOLOGY}}'/"$TOPOLOGY"}
job=${job//'{{SLICES}}'/"$SLICES"}
job=${job//'{{RESTARTS}}'/"$RESTARTS"}
job=${job//'{{SPOT}}'/"$([ -z "$SPOT" ] || echo ', cloud.google.com/gke-spot: "true"')"}
job=${job//'{{COMMAND}}'/"[$words]"}

if [ -n "$DRY_RUN" ]; then
  echo "$job"
else
  kubectl apply -f - <<<"$job"
fi
