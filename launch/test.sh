#!/usr/bin/env bash
# Every check that a change must pass: lint, format, types, tests. Other arguments go to pytest.
#
#   bash launch/test.sh
#   bash launch/test.sh tests/test_tokenizer.py -k accents
#   bash launch/test.sh --peers      also compares with torch and transformers, which the [peers] extra installs
#   bash launch/test.sh --faults     nothing but the long tests of faults: what is promised of each, and how often it held
set -euo pipefail
# shellcheck source=launch/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$ROOT"
extras=(dev) peers=
if [[ ${1:-} == --peers ]]; then
  shift
  extras+=(peers)
  peers=1
fi
ensure_env "${extras[@]}"

if [[ ${1:-} == --faults ]]; then
  exec "$VENV_PYTHON" -m pytest -m faults --durations=0 --fault-table=.pytest_cache/faults.txt "${@:2}"
fi

"$VENV_PYTHON" -m ruff check .
"$VENV_PYTHON" -m ruff format --check .
"$VENV_PYTHON" -m mypy ptft
if (($#)); then
  PTFT_PEERS=$peers "$VENV_PYTHON" -m pytest "$@"
  exit
fi
"$VENV_PYTHON" -m pytest
# Tests run programs as they compile fastest. What must be equal to the bit in two programs must be so as users compile them, too.
PTFT_OPTIMIZED=1 "$VENV_PYTHON" -m pytest tests/test_feature_cache.py
# And that way of compiling rounds more than a comparison with torch may.
[[ -z $peers ]] || PTFT_PEERS=1 "$VENV_PYTHON" -m pytest tests/test_peers.py tests/test_peft.py
