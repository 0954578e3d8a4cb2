"""The program behind launch/bench.sh: `python -m benchmarks`."""

import sys

from benchmarks.program import main
from feddpa_jax.cli import streams

if __name__ == "__main__":
    streams.prepare()
    streams.go_on_without()
    sys.exit(main())
