# shellcheck shell=bash
# Sourced by the scripts beside it: does a run that crashed deserve another start?
#
#   RESTARTS=3    how many starts after crashes a run gets at most; 0: none
#
# A run that has saved no newer step in two starts after crashes would crash for ever, and gets no third one, whatever
# the limit. Nor does a command without --workdir: it would begin anew.

RESTARTS=${RESTARTS:-3}
if [[ ! $RESTARTS =~ ^(0|[1-9][0-9]{0,8})$ ]]; then
  echo "error: RESTARTS is '$RESTARTS'; expected a whole number, for example RESTARTS=3, or 0 for no restart" >&2
  exit 2
fi

# Done, preempted and saved, a mistake in the command, Ctrl-C; everything else is a crash.
crashed() { [[ ! $1 =~ ^(0|75|2|130)$ ]]; }

# newest_step COMMAND… prints the newest step that was saved whole in the command's --workdir; -1: none so far;
# nothing: the command names no folder.
newest_step() {
  local word before="" workdir="" file step newest=-1
  for word in "$@"; do
    if [[ $before == --workdir ]]; then workdir=$word; fi
    if [[ $word == --workdir=* ]]; then workdir=${word#*=}; fi
    before=$word
  done
  if [[ -z $workdir ]]; then return; fi
  for file in "$workdir"/manifests/checkpoints-*.json; do
    step=${file##*-} step=${step%.json}
    if [[ $step =~ ^[0-9]+$ ]] && ((10#$step > newest)); then newest=$((10#$step)); fi
  done
  echo "$newest"
}

# starts_again FILE CODE STEP says in one line what follows from a crash with that exit code and that newest step, and
# whether another start does. FILE remembers the newest step at every crash of this run.
starts_again() {
  local n steps why=""
  echo "${3:--1}" >>"$1"
  read -r -d "" -a steps <"$1" || true
  n=$((${#steps[@]} - 1)) # starts after crashes so far
  if [[ -z $3 ]]; then
    why="the command has no --workdir to go on from"
  elif ((n >= RESTARTS)); then
    why="RESTARTS=$RESTARTS"
  elif ((n >= 2 && steps[n] <= steps[n - 1] && steps[n - 1] <= steps[n - 2])); then
    why="two starts in a row saved no newer step"
  fi
  local crash="crashed with exit code $2, newest saved step: ${3/#-1/none}"
  if [[ -n $why ]]; then
    echo "$crash; not started again: $why" >&2
    return 1
  fi
  echo "$crash; starting again, $((n + 1)) of at most $RESTARTS" >&2
}
