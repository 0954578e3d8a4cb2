#!/usr/bin/env bash
# Training on all GPUs of this machine: one process sees them all, and clients are spread over them.
#   bash launch/multi_gpu.sh --config configs/paper/dataset1_feddpa_t.yaml --run-dir runs/dataset1
# Once before: .venv/bin/python -m pip install 'jax[cuda13]' (or cuda12), in the version of requirements.txt.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec "${FEDDPA:-.venv/bin/feddpa}" train "$@"
