#!/usr/bin/env bash
# Starts a run as a job on a TPU node pool of kubectl's current GKE cluster.
#
#   tpu_scripts/gke/launch.sh --name=flan --image=REGISTRY/t5flan --accelerator=tpu-v5-lite-podslice --topology=4x4 \
#     --hosts=4 --chips=4 -- train --workdir=gs://BUCKET/flan --gin_file=runs/pretrain …
#
#   --name         name of the job
#   --image        a container image with Python and `t5flan[tpu]` installed
#   --accelerator  the node pool's accelerator: tpu-v4-podslice, tpu-v5-lite-podslice, tpu-v5p-slice, tpu-v6e-slice
#   --topology     the slice's topology: 4x4, 2x2x4 …
#   --hosts        machines in the slice, with one pod each
#   --chips        TPU chips per machine
#   --dry-run      print the job without applying it
#   -- COMMAND…    t5flan's arguments; the workdir must be on gs://, where all pods see it
#
# Next: tpu_scripts/gke/watch.sh --name=NAME.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$HERE/../settings.sh"

FLAGS='name image accelerator topology hosts chips'
read_flags "$@"
need name image accelerator topology hosts chips
[ ${#COMMAND[@]} -gt 0 ] || fail 'no t5flan command: write it after --, as in `-- train --workdir=gs://…`'
[ "${COMMAND[0]}" != train ] || [ "$HOSTS" = 1 ] || COMMAND+=(--gin.RunConfig.multi_host=True)
[[ $NAME =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || fail "--name=$NAME is not a valid Kubernetes name: use a-z, 0-9 and -"
[[ $HOSTS =~ ^[0-9]+$ && $CHIPS =~ ^[0-9]+$ ]] || fail "--hosts=$HOSTS and --chips=$CHIPS must be numbers"

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
job=${job//'{{COMMAND}}'/"[$words]"}

if [ -n "$DRY_RUN" ]; then
  echo "$job"
else
  kubectl apply -f - <<<"$job"
fi
