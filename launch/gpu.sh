#!/usr/bin/env bash
# What a GPU gives, in ten minutes and in parts whose figures are printed and saved as they come: SmolLM2's step against
# torch + peft on the same real rows (a ratio within the first minute), answers against one at a time, Llama-2-7B's step
# (random weights), parity with transformers and the reference loop, beam search, Llama-3.2-1B's step.
#   bash launch/gpu.sh OUT --data FOLDER       OUT/gpu.json: device, tokens and answers a second, share of the peak, memory
#   bash launch/gpu.sh OUT --seconds 280       a shorter piece; the same command goes on with the parts that are not done
#   bash launch/gpu.sh OUT --only llama-2-7b   one part of it
#   bash launch/gpu.sh OUT --tiny              the same course with a tiny model, in a minute on a CPU
# PYTHON names the interpreter, with jax for the device, torch, transformers, peft and pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# Torch works beside JAX on the same card.
export XLA_PYTHON_CLIENT_PREALLOCATE=false
exec "${PYTHON:-.venv/bin/python}" -m benchmarks.course "$@"
