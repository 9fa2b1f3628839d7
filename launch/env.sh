# shellcheck shell=bash
# Sourced by the scripts beside it: puts the project into .venv and leaves the interpreter in $VENV_PYTHON.
#
#   ensure_env          the project
#   ensure_env dev      the project with its [dev] extra

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV_PYTHON=$ROOT/.venv/bin/python

# XLA's CPU client asks for each step's buffers anew. In huge pages that costs a hundredth of the page faults, which are
# a third of a small model's step. Other systems and C libraries ignore it.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}

# ensure_env leaves compiling to the first import of a module, which has to keep the result then.
unset PYTHONDONTWRITEBYTECODE

# Prints the first Python that can carry the project. $PYTHON, if set, is the only candidate.
find_python() {
  local candidate version seen=() candidates=(python3 python3.12 python3.11 python3.13 python3.14 python)
  [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    version=$("$candidate" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) || continue
    if ! "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
      seen+=("$candidate is $version")
    elif ! "$candidate" -c 'import venv, ensurepip' 2>/dev/null; then
      seen+=("$candidate is $version but has no venv module")
    else
      echo "$candidate"
      return
    fi
  done
  {
    echo "error: ptft needs Python 3.11 or newer, with its venv module."
    printf '  found: %s\n' "${seen[@]:-no Python${PYTHON:+ at $PYTHON}}"
    echo "  Install one, or name it: PYTHON=/path/to/python3.12 bash launch/${0##*/}"
  } >&2
  return 2
}

# What an installation depends on, as one hash: this folder, the interpreter, the dependencies and their pins.
fingerprint() {
  "$VENV_PYTHON" - "$ROOT" <<'EOF'
import hashlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
parts = [str(root).encode(), sys.version.encode(), (root / "pyproject.toml").read_bytes(), (root / "launch/constraints.txt").read_bytes()]
print(hashlib.sha256(b"\0".join(parts)).hexdigest())
EOF
}

# Installs what is missing; a second call finds the stamp "HASH extra extra …" and does nothing.
# shellcheck disable=SC2120  # no arguments, no extras
ensure_env() {
  local stamp=$ROOT/.venv/ptft-installed busy=$ROOT/.venv/ptft-installing python hash="" extras="" extra
  # Build the environment if there is none, if an installation was cut short (what it left behind cannot be trusted),
  # or if $PYTHON asks for another interpreter than the one inside.
  if [[ -e $busy ]] || ! "$VENV_PYTHON" -c '' 2>/dev/null || { [[ -n ${PYTHON:-} ]] && ! same_python; }; then
    python=$(find_python) || return
    echo "creating .venv with $("$python" --version)"
    rm -rf "$ROOT/.venv" && mkdir "$ROOT/.venv" && touch "$busy"
    "$python" -m venv "$ROOT/.venv"
  fi
  hash=$(fingerprint)
  [[ -f $stamp ]] && extras=$(cut -d' ' -f2- "$stamp")
  for extra in "$@"; do
    [[ " $extras " == *" $extra "* ]] || { extras="${extras:+$extras }$extra" && rm -f "$stamp"; }
  done
  [[ -f $stamp && $(cut -d' ' -f1 "$stamp") == "$hash" ]] && return

  echo "installing ptft${extras:+[${extras// /,}]} into .venv (a few minutes, once)"
  touch "$busy" && rm -f "$stamp"
  # Compiling all that is installed would take as long as installing it; most of it is never imported.
  "$VENV_PYTHON" -m pip install --quiet --no-compile --disable-pip-version-check \
    --editable "$ROOT${extras:+[${extras// /,}]}" --constraint "$ROOT/launch/constraints.txt" || {
    echo "error: the installation failed (see above); run the same command to try again" >&2
    return 1
  }
  echo "$hash $extras" >"$stamp" && rm -f "$busy"
}

same_python() {
  local who='import sys; print(sys.version, sys.base_prefix)'
  [[ "$("$PYTHON" -c "$who" 2>&1)" == "$("$VENV_PYTHON" -c "$who")" ]]
}
