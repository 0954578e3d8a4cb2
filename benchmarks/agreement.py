"""Whether both sides did the same work: their losses, update by update."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from feddpa_jax.types import UserError

# Largest relative difference of a loss. In float32 the sides agree to some 1e-6 (SmolLM2). In
# bfloat16, of the first losses alone: each side is off by its own rounding, against float32 ours by
# 0.7 % and torch, which rounds between products too, by up to 3.2 % on eight short answers.
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}


class Agreement(NamedTuple):
    """How far losses agree.

    Attributes:
      compared: number of losses.
      largest: the largest relative difference.
      tolerance: what is allowed.
    """

    compared: int
    largest: float
    tolerance: float


Losses = Mapping[str, Sequence[float]]


def compare(ours: Losses, theirs: Losses, dtype: str) -> Agreement:
    """Compares the losses of the same updates by client.

    Raises:
      UserError: they differ by more than the tolerance.
    """
    tolerance = TOLERANCE[dtype]
    worst = 0.0
    assert ours.keys() == theirs.keys()
    for name, curve in ours.items():
        for update, (a, b) in enumerate(zip(curve, theirs[name], strict=True)):
            difference = abs(a - b) / max(abs(a), abs(b), 1e-6)
            worst = max(worst, difference)
            # Not `>`: a NaN agrees with nothing.
            if not difference <= tolerance:
                raise UserError(
                    f"the two sides do not do the same work: {name}, update {update}: loss "
                    f"{a:.5f} here, {b:.5f} in torch, which differ by {difference:.2%} (allowed: "
                    f"{tolerance:.1%}); nothing was measured. "
                    "Measure ours alone with --no-torch"
                )
    return Agreement(sum(map(len, ours.values())), worst, tolerance)
