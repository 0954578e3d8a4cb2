#!/usr/bin/env bash
# All tests, in the same .venv with the test extras; more options are passed on to pytest.
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"
make_environment test
exec .venv/bin/python -m pytest "$@"
