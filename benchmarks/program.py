"""From the options of launch/bench.sh to a benchmark, or to one line that says what is wrong."""

import sys
from collections.abc import Sequence

from benchmarks.arguments import PROGRAM, make_parser
from feddpa_jax.cli.arguments import check_paths, check_texts
from feddpa_jax.files.escape import one_line
from feddpa_jax.files.problems import in_one_line


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark.

    Args:
      arguments: its options; None for the program's own.

    Returns:
      0; 2 with one line on stderr for an error that the user can fix; 130 if it was stopped.
    """
    try:
        _run(arguments)
    except KeyboardInterrupt:
        print(f"{PROGRAM}: stopped; nothing was written", file=sys.stderr)
        return 130
    except Exception as error:
        line = in_one_line(error)
        if line is None:
            raise
        print(f"{PROGRAM}: error: {one_line(' '.join(line.split()))}", file=sys.stderr)
        return 2
    return 0


def _run(arguments: Sequence[str] | None) -> None:
    known, overrides = make_parser().parse_known_args(arguments)
    check_texts(known, overrides)
    check_paths(known)
    # Heavy imports wait until the options are right.
    from feddpa_jax.plan.topology import quiet_compiler

    quiet_compiler()
    from benchmarks.comparison import Options, measure, read_counts
    from feddpa_jax.cli.console import Reporter
    from feddpa_jax.config import load_config
    from feddpa_jax.run.opening import checked

    options = Options(
        out=known.out,
        updates=known.updates,
        clients=read_counts(known.clients),
        instances=known.instances,
        repeat=known.repeat,
        torch=not known.no_torch,
    )
    measure(checked(load_config(known.config, overrides)), options, Reporter())
