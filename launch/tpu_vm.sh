#!/usr/bin/env bash
# A Cloud TPU slice from nothing to a running job: ask for it, wait, copy the project to every host, set up, start.
#
#   PROJECT=my-project ZONE=us-east5-b \
#     bash launch/tpu_vm.sh NAME train --config configs/pretrain.py:size=base --workdir /mnt/shared/base
#   DRY_RUN=1 …                       prints the commands and runs none
#   TPU=v5litepod-16  VERSION=v2-alpha-tpuv5-lite  SPOT=0      the slice; a spot slice is the default
#
# A slice that was preempted is gone. Run the same command again: it asks for a new one, and training resumes from the
# workdir, which therefore has to be on a disk that every host mounts and that outlives the slice (Filestore, or a bucket
# through gcsfuse). On the TPU the hosts find each other without help: JAX_DISTRIBUTED=auto.
set -euo pipefail

if [[ $# -lt 2 ]]; then
  echo "usage: PROJECT=… ZONE=… bash launch/tpu_vm.sh NAME VERB…   for example: NAME train --config configs/pretrain.py" >&2
  exit 2
fi
name=$1
shift
: "${PROJECT:?set PROJECT to your Google Cloud project}" "${ZONE:?set ZONE, for example us-east5-b}"
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
where=(--project "$PROJECT" --zone "$ZONE")

run() {
  if [[ ${DRY_RUN:-0} == 1 ]]; then
    printf '%q ' "$@" && echo
  else
    "$@"
  fi
}
tpu() { run gcloud compute tpus "$@" "${where[@]}"; }
state() { gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format='value(state.state)' 2>/dev/null || echo NONE; }

# 1. Ask for the slice, unless an earlier call did. One that was taken away has to be cleared first.
now=NONE
[[ ${DRY_RUN:-0} == 1 ]] || now=$(state)
if [[ $now == SUSPENDED || $now == FAILED ]]; then
  tpu queued-resources delete "$name" --force --quiet
  now=NONE
fi
if [[ $now == NONE ]]; then
  slice=(--accelerator-type "${TPU:-v5litepod-16}" --runtime-version "${VERSION:-v2-alpha-tpuv5-lite}")
  [[ ${SPOT:-1} == 1 ]] && slice+=(--spot)
  tpu queued-resources create "$name" --node-id "$name" "${slice[@]}"
fi

# 2. Wait until it is ours: minutes, or a day.
while [[ ${DRY_RUN:-0} != 1 ]]; do
  now=$(state)
  [[ $now == ACTIVE ]] && break
  [[ $now == FAILED || $now == SUSPENDED ]] && { echo "error: the request for $name is $now" >&2 && exit 1; }
  echo "$(date +%T) $name is $now" && sleep 60
done

# 3. The last commit (not what is uncommitted) to every host; then pip with the same pins as everywhere.
archive=$(mktemp)
trap 'rm -f "$archive"' EXIT
run git -C "$root" archive --format tar.gz --output "$archive" HEAD
tpu tpu-vm scp "$archive" "$name:ptft.tar.gz" --worker=all
tpu tpu-vm ssh "$name" --worker=all --command \
  "mkdir -p ptft && tar xzf ptft.tar.gz -C ptft && cd ptft && source launch/env.sh && ensure_env tpu"

# 4. The same command on every host.
tpu tpu-vm ssh "$name" --worker=all --command "cd ptft && JAX_DISTRIBUTED=auto .venv/bin/ptft $(printf '%q ' "$@")"
