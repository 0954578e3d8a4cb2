"""How long the fuzzers run: a few fixed examples, or FEDDPA_FUZZ of them, others every time."""

import os

from hypothesis import HealthCheck, Phase, settings


def fuzz(count: int) -> settings:
    """The settings of a fuzzer, as a decorator.

    Args:
      count: examples in the suite, the same in every run. With FEDDPA_FUZZ=N there are N, drawn
        anew, and a failing one is made smaller.
    """
    wanted = int(os.environ.get("FEDDPA_FUZZ", "0"))
    phases = [Phase.explicit, Phase.generate, *([Phase.shrink] if wanted else [])]
    return settings(
        max_examples=wanted or count,
        derandomize=not wanted,
        database=None,
        deadline=None,
        phases=phases,
        print_blob=bool(wanted),
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
