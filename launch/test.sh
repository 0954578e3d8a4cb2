#!/usr/bin/env bash
# All tests, in the same .venv with the test extras; more options are passed on to pytest.
#   bash launch/test.sh                                all, by two workers
#   bash launch/test.sh -m quick                       a part of every area, in 90 seconds
#   bash launch/test.sh tests/training -k adam         some, by one process
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"
make_environment test
exec .venv/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder "$@"
