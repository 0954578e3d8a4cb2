#!/usr/bin/env bash
# The paper's schedule on both data sets, all methods with seed 0, four of them with the seeds 1 and 2, and FedDPA-T with
# what could keep its local adapter from overfitting (early stopping; one local epoch), in pieces of ten minutes on one
# GPU. A piece goes on where the last one stopped and lists what is left.
#   bash launch/paper_gpu.sh OUT                  OUT: what the next piece needs, also on another machine, under 64 MiB
#   bash launch/paper_gpu.sh OUT --seconds 300    a shorter piece
#   bash launch/paper_gpu.sh OUT --tiny           the same course with a tiny model, in a minute on a CPU
# The runs are in runs/paper; feddpa compare and feddpa report read them there. PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec "${PYTHON:-.venv/bin/python}" -m benchmarks.pieces "$@"
