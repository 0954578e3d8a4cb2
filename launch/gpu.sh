#!/usr/bin/env bash
# What a GPU gives: parity with transformers and with the reference loop, then the benchmark against the sequential
# torch + peft loop on SmolLM2 and on random weights in the sizes of Llama-3.2-1B and Llama-2-7B; one JSON.
#   bash launch/gpu.sh OUT            OUT/gpu.json: device, tokens a second, share of the peak, memory
#   bash launch/gpu.sh OUT --only smollm2-135m    one part of it: parity, or a model
#   bash launch/gpu.sh OUT --tiny     the same course with a tiny model, in a minute on a CPU
# PYTHON names the interpreter, with jax for the device, torch, transformers, peft and pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# Torch works beside JAX on the same card.
export XLA_PYTHON_CLIENT_PREALLOCATE=false
exec "${PYTHON:-.venv/bin/python}" -m benchmarks.course "$@"
