#!/usr/bin/env bash
# Every check that a change must pass: lint, format, types, tests. Arguments go to pytest.
#
#   bash launch/test.sh
#   bash launch/test.sh tests/test_tokenizer.py -k accents
set -euo pipefail
# shellcheck source=launch/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$ROOT"
ensure_env dev

"$VENV_PYTHON" -m ruff check .
"$VENV_PYTHON" -m ruff format --check .
"$VENV_PYTHON" -m mypy ptft
exec "$VENV_PYTHON" -m pytest "$@"
