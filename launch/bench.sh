#!/usr/bin/env bash
# The benchmark: training and answers against a sequential torch + peft loop on the same work; a table, and OUT/bench.json.
#   bash launch/bench.sh --config configs/tiny.yaml --out OUT     every option: bash launch/bench.sh --help
# PYTHON names the interpreter, with jax, torch, transformers and peft (bash launch/test.sh installs them into .venv).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec "${PYTHON:-.venv/bin/python}" -m benchmarks "$@"
