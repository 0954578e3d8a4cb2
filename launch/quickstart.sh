#!/usr/bin/env bash
# The main job on a fresh machine: eight clients train FedDPA-T on SmolLM2-135M, a table of results, and a page.
# Needs Python 3.11 or newer and a package index; more options are passed on to `feddpa train`.
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"
make_environment
.venv/bin/feddpa train --config configs/quickstart.yaml --run-dir runs/quickstart "$@"
if [ -f runs/quickstart/config.yaml ]; then
  .venv/bin/feddpa report runs/quickstart --out runs/quickstart/report.html
fi
