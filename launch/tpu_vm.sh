#!/usr/bin/env bash
# A Cloud TPU slice from nothing to a running job: ask for it, wait, copy the project to every host, set up, start.
#
#   PROJECT=my-project ZONE=us-east5-b \
#     bash launch/tpu_vm.sh NAME train --config configs/pretrain.py:size=base --workdir /mnt/shared/base
#   DRY_RUN=1 …                       prints the commands and runs none
#   TPU=v5litepod-16  VERSION=v2-alpha-tpuv5-lite  SPOT=0      the slice; a spot slice is the default
#
# When the run is preempted (exit code 75) or its slice is taken away, this asks for the slice again and goes on; after a
# crash it starts all hosts again, as launch/restarts.sh has it (RESTARTS=0: never). Stopped itself, the same command goes
# on. The workdir therefore has to be on a disk that every host mounts and that outlives the slice (Filestore, or a bucket
# through gcsfuse). On the TPU the hosts find each other without help: JAX_DISTRIBUTED=auto. The slice is left running,
# and costs, until `gcloud compute tpus queued-resources delete NAME --force`.
set -euo pipefail

if [[ $# -lt 2 ]]; then
  echo "usage: PROJECT=… ZONE=… bash launch/tpu_vm.sh NAME VERB…   for example: NAME train --config configs/pretrain.py" >&2
  exit 2
fi
name=$1
shift
if [[ -z ${PROJECT:-} || -z ${ZONE:-} ]]; then
  echo "error: set PROJECT to your Google Cloud project and ZONE to a zone, for example us-east5-b" >&2
  exit 2
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/restarts.sh
source "$root/launch/restarts.sh"
where=(--project "$PROJECT" --zone "$ZONE")
dry=${DRY_RUN:-0}
command=$(printf '%q ' "$@")

run() {
  if [[ $dry == 1 ]]; then
    printf '%q ' "$@" && echo
  else
    "$@"
  fi
}
tpu() { run gcloud compute tpus "$@" "${where[@]}"; }
on() { tpu tpu-vm ssh "$name" --worker="$1" --command "$2"; } # on WORKER COMMAND
state() { gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format='value(state.state)' 2>/dev/null || echo NONE; }

# Returns when the slice is ours, in minutes or in a day. It is asked for, unless an earlier call did; one that was taken
# away has to be cleared first.
get_slice() {
  local now asked="" slice=(--accelerator-type "${TPU:-v5litepod-16}" --runtime-version "${VERSION:-v2-alpha-tpuv5-lite}")
  [[ ${SPOT:-1} == 1 ]] && slice+=(--spot)
  while true; do
    now=NONE
    [[ $dry == 1 ]] || now=$(state)
    case $now in
      ACTIVE) return ;;
      NONE)
        tpu queued-resources create "$name" --node-id "$name" "${slice[@]}"
        asked=1
        ;;
      FAILED | SUSPENDED)
        [[ -z $asked ]] || { echo "error: the request for $name is $now" >&2 && exit 1; }
        tpu queued-resources delete "$name" --force --quiet
        continue
        ;;
      *) echo "$(date +%T) $name is $now" ;;
    esac
    if [[ $dry == 1 ]]; then return; fi
    sleep 60
  done
}

# The project to every host, with the same pins as everywhere; then the same command on every host.
start() {
  tpu tpu-vm scp "$archive" "$name:ptft.tar.gz" --worker=all &&
    on all "mkdir -p ptft && tar xzf ptft.tar.gz -C ptft && cd ptft && source launch/env.sh && ensure_env tpu" &&
    on all "cd ptft && JAX_DISTRIBUTED=auto .venv/bin/ptft $command"
}

# The last commit, not what is uncommitted: the same one after every restart.
archive=$(mktemp)
crashes=$(mktemp)
trap 'rm -f "$archive" "$crashes"' EXIT
run git -C "$root" archive --format tar.gz --output "$archive" HEAD
while true; do
  get_slice
  code=0
  start || code=$?
  if [[ $dry == 1 ]]; then break; fi
  now=$(state) # a connection that breaks ends with any code
  case $code/$now in
    2/* | 130/*) break ;;
    */SUSPENDING | */SUSPENDED | 75/ACTIVE)
      echo "preempted (exit code $code, $name is $now); asking for $name again"
      sleep 60 # the processes are told half a minute before their slice goes
      ;;
    0/* | 75/*) break ;;
    */ACTIVE)
      step=$(on 0 "cd ptft && source launch/restarts.sh && newest_step $command" | tail -n 1) || step=-1
      starts_again "$crashes" "$code" "$step" || break
      ;;
    *)
      echo "error: exit code $code, and $name is $now: deleted, or out of reach" >&2
      break
      ;;
  esac
done
exit "$code"
