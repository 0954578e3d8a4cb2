"""A value and its bootstrap interval: as text, and as JSON."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Interval:
    """A value and its 95 % bootstrap interval; NaN where there is no value.

    >>> Interval(0.5, 0.25, 0.75).text(2)
    '0.50 [0.25, 0.75]'
    """

    value: float
    low: float
    high: float

    @property
    def known(self) -> bool:
        """Whether there is a value: no client may have an own task in the tests."""
        return not math.isnan(self.value)

    def text(self, digits: int) -> str:
        """The value and its interval in brackets, with so many digits after the point."""
        if not self.known:
            return "–"
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"

    def to_json(self) -> dict[str, float | None]:
        """By name; null, not NaN, which is no JSON, where there is no value."""
        parts = dataclasses.asdict(self)
        return {name: None if math.isnan(part) else part for name, part in parts.items()}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Interval":
        """From what `to_json` gives.

        Raises:
          LookupError, TypeError, ValueError: it is something else.
        """
        parts = [found[name] for name in ("value", "low", "high")]
        return cls(*(math.nan if part is None else float(part) for part in parts))
