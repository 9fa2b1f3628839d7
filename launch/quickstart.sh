#!/usr/bin/env bash
# The whole story in one command: set up, pretrain a small BERT on the documentation that this Python environment
# carries, finetune parts of it in several ways, write a page that says which parts were worth training, and use one.
#
#   bash launch/quickstart.sh
#   PYTHON=/path/to/python3.12 bash launch/quickstart.sh     # another interpreter
#
# Nothing is downloaded but packages. Interrupted? Run it again: finished work is kept, and training resumes.
set -euo pipefail
# shellcheck source=launch/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$ROOT"
ensure_env bench

# Says the command as it can be typed, and runs it.
ptft() {
  local word line="$ .venv/bin/ptft"
  for word in "$@"; do
    [[ $word == *" "* ]] && word="\"$word\""
    line+=" $word"
  done
  echo && echo "$line"
  "$VENV_PYTHON" -m ptft "$@"
}

# 1. Read raw text and guess masked words, a minute on two cores.
ptft train --config configs/quickstart.py:pretrain --workdir runs/quickstart/pretrain

# 2. Finetune the encoder: every strategy, several seeds. One JSON file a run, so that a second start skips what is done.
ptft bench --config configs/quickstart.py:bench --workdir runs/quickstart/bench

# 3. Look: the table here, the curves on the page.
ptft report runs/quickstart/bench

# 4. Use it: train one strategy for keeps, and ask it which word is missing.
ptft train --config configs/quickstart.py:use --workdir runs/quickstart/use
ptft predict --workdir runs/quickstart/use --text "It returns the number ___ rows that were read." --text "The name of the file is passed ___ the next function."

echo
echo "$((SECONDS / 60)) min $((SECONDS % 60)) s; the report is at $ROOT/runs/quickstart/bench/report.html"
