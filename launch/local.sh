#!/usr/bin/env bash
# Several processes on this machine that act as the hosts of one cluster: a rehearsal of a multi-host run, or one
# process a GPU.
#
#   bash launch/local.sh 2 ptft train --config configs/pretrain.py --workdir runs/two
#
# Each process learns its place from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. After a crash all
# end and start again, as launch/restarts.sh has it (RESTARTS=0: never). The exit code is ptft's: 0 done, 75 preempted
# and saved (run the same command again to go on), 2 a mistake in the command, anything else a crash.
set -euo pipefail

if [[ $# -lt 2 || ! $1 =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: bash launch/local.sh PROCESSES COMMAND…   (got: $*)" >&2
  exit 2
fi
processes=$1
shift

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/restarts.sh
source "$root/launch/restarts.sh"
export PATH="$root/.venv/bin:$PATH" # so that COMMAND may say "ptft"
export JAX_NUM_PROCESSES=$processes
address=${JAX_COORDINATOR_ADDRESS:-}

# Ctrl-C or a preemption notice reaches all of them, and they save. Nothing starts after it.
pids=()
told=0
stop() { kill -TERM "${pids[@]}" 2>/dev/null || true; }
trap 'told=1; stop' TERM INT

# Every line says which process wrote it.
start() {
  local id
  export JAX_COORDINATOR_ADDRESS=${address:-127.0.0.1:$((20000 + RANDOM % 20000))}
  for ((id = 0; id < processes; id++)); do
    JAX_PROCESS_ID=$id "$@" > >(sed -u "s/^/[$id] /") 2> >(sed -u "s/^/[$id] /" >&2) &
    pids[id]=$!
  done
  if ((told)); then stop; fi # asked for while they started
}

# Waits for all; $status is how the group ended. A process that fails leaves the others waiting for it for ever: they
# are told to stop, and half a minute later made to. One that was preempted (75) is no failure; its peers are saving, too.
finish() {
  local id code deadline=0
  status=0
  while [[ ${#pids[@]} -gt 0 ]]; do
    for id in "${!pids[@]}"; do
      kill -0 "${pids[id]}" 2>/dev/null && continue
      code=0
      wait "${pids[id]}" || code=$?
      unset "pids[id]"
      if ((code != 0 && (status == 0 || status == 75))); then status=$code; fi
      if ((code != 0 && code != 75 && deadline == 0)) && [[ ${#pids[@]} -gt 0 ]]; then
        echo "process $id failed with exit code $code; stopping the others" >&2
        stop
        deadline=$((SECONDS + 30))
      fi
    done
    if ((deadline > 0 && SECONDS > deadline)); then kill -KILL "${pids[@]}" 2>/dev/null || true; fi
    sleep 0.2
  done
}

crashes=$(mktemp)
trap 'rm -f "$crashes"' EXIT
while true; do
  start "$@"
  finish
  if ((told)) || ! crashed "$status"; then break; fi
  starts_again "$crashes" "$status" "$(newest_step "$@")" || break
done
exit "$status"
