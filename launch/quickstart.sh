#!/usr/bin/env bash
# The whole story in one command: set up, pretrain a small BERT on the documentation that this Python environment
# carries, finetune parts of it in several ways, and write a page that says which parts were worth training.
#
#   bash launch/quickstart.sh
#   PYTHON=/path/to/python3.12 bash launch/quickstart.sh     # another interpreter
#
# Nothing is downloaded but packages. Interrupted? Run it again: finished work is kept, and training resumes.
set -euo pipefail
# shellcheck source=launch/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$ROOT"
# shellcheck disable=SC2119  # no extras
ensure_env

ptft() {
  echo "\$ ptft $*"
  "$VENV_PYTHON" -m ptft "$@"
}

# 1. Read raw text: masked words and next sentences, some minutes on two cores.
ptft train --config configs/quickstart.py:pretrain --workdir runs/quickstart/pretrain

# 2. Finetune the encoder: every strategy, several seeds. One JSON file a run, so that a second start skips what is done.
ptft bench --config configs/quickstart.py:bench --workdir runs/quickstart/bench

# 3. Look: the table here, the curves on the page.
ptft report runs/quickstart/bench
echo "the report is at $ROOT/runs/quickstart/bench/report.html"
