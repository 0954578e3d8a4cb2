#!/usr/bin/env bash
# The main job on a fresh machine: eight clients train FedDPA-T on SmolLM2-135M, and a table of results.
# Needs Python 3.11 or newer and a package index; more options are passed on to `feddpa train`.
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"
make_environment
exec .venv/bin/feddpa train --config configs/quickstart.yaml --run-dir runs/quickstart "$@"
