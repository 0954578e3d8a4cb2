"""A value and its 95 % intervals, each of a named kind."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from scipy.special import stdtr, stdtrit

from feddpa_jax.evaluate.spread import CONFIDENCE, MANY

# What was drawn, and might have been drawn otherwise, by the name of an interval's kind.
KINDS = {
    "over_instances": "over test instances (clients and seeds fixed)",
    "over_clients": "over clients (test instances and seeds fixed)",
    "over_all": "over clients, test instances and, from three on, seeds",
}
LEGEND = (
    "[ ]: 95 % interval over test instances, clients and seeds fixed. ( ): 95 % interval over "
    "clients, test instances and seeds fixed."
)
OLDER = "an older version made this evaluation; evaluate again"


@dataclasses.dataclass(frozen=True)
class Interval:
    """A value and one 95 % interval; NaN where there is no value, or no interval.

    Attributes:
      value: what the interval is of.
      low: its lower end.
      high: its upper end.
      freedom: degrees of freedom of Student's t.
      why: why there is no interval; empty if there is one.

    >>> Interval(0.5, 0.25, 0.75).text(2), Interval.none(0.5, "2 clients").text(2)
    ('0.50 [0.25, 0.75]', '0.50 [–]')
    """

    value: float
    low: float
    high: float
    freedom: float = MANY
    why: str = ""

    @classmethod
    def none(cls, value: float, why: str) -> "Interval":
        """A value without an interval."""
        return cls(value, math.nan, math.nan, math.nan, why)

    @property
    def known(self) -> bool:
        """Whether there is a value: no client may have an own task in the tests."""
        return not math.isnan(self.value)

    @property
    def bounded(self) -> bool:
        """Whether there is an interval: there may be too few instances or clients for one."""
        return not math.isnan(self.low)

    @property
    def ends(self) -> tuple[float, float]:
        """The interval as a figure draws it: without one, the value itself, twice."""
        return (self.low, self.high) if self.bounded else (self.value, self.value)

    @property
    def p(self) -> float:
        """The two-sided p-value of "the value is 0"; NaN without an interval.

        The p-value is below 0.05 exactly where the interval leaves 0 out. Only of a paired
        difference is this a question.

        >>> round(Interval(1.0, 0.0, 2.0, freedom=10).p, 3)
        0.05
        """
        if not self.bounded:
            return math.nan
        reach = self.value - self.low if self.value > 0 else self.high - self.value
        if not reach:
            return 1.0 if not self.value else 0.0
        t = abs(self.value) / reach * float(stdtrit(self.freedom, (1 + CONFIDENCE) / 2))
        return float(2 * stdtr(self.freedom, -t))

    def brackets(self, digits: int, ends: str = "[]") -> str:
        """The interval alone."""
        if not self.bounded:
            return f"{ends[0]}–{ends[1]}"
        return f"{ends[0]}{self.low:.{digits}f}, {self.high:.{digits}f}{ends[1]}"

    def text(self, digits: int) -> str:
        """The value and its interval in brackets, with so many digits after the point."""
        return f"{self.value:.{digits}f} {self.brackets(digits)}" if self.known else "–"

    def to_json(self) -> dict[str, Any]:
        """Without the value; null, not NaN, which is no JSON, where there is no interval."""
        if not self.bounded:
            return {"low": None, "high": None, "freedom": None, "why": self.why}
        return {"low": self.low, "high": self.high, "freedom": self.freedom}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value with an interval of each kind.

    Attributes:
      over_instances: had other test instances been drawn, with these clients and seeds.
      over_clients: had other clients been drawn, with these test instances and seeds.
      over_all: had clients, test instances and, with three or more, seeds been others.

    Example:
      ```
      p = run.evaluate()["exact_match"]["instance"].p
      print(p.value, p.over_instances.low, p.over_clients.bounded, p.over_all.text(1))
      ```
    """

    over_instances: Interval
    over_clients: Interval
    over_all: Interval

    @property
    def value(self) -> float:
        """The value itself; NaN where there is none."""
        return self.over_instances.value

    @property
    def known(self) -> bool:
        """Whether there is a value."""
        return self.over_instances.known

    def text(self, digits: int) -> str:
        """The value, its interval over instances in [ ] and the one over clients in ( )."""
        if not self.known:
            return "–"
        return f"{self.over_instances.text(digits)} {self.over_clients.brackets(digits, '()')}"

    def columns(self, name: str) -> dict[str, float]:
        """The value and the ends of its intervals by column, such as `P_over_clients_low`."""
        found = {name: self.value}
        for kind in KINDS:
            span: Interval = getattr(self, kind)
            found |= {f"{name}_{kind}_low": span.low, f"{name}_{kind}_high": span.high}
        return found

    def to_json(self) -> dict[str, Any]:
        """The value, or null, and each interval by its kind."""
        value = None if math.isnan(self.value) else self.value
        return {"value": value, **{kind: getattr(self, kind).to_json() for kind in KINDS}}

    @classmethod
    def none(cls, value: float, why: str) -> "Estimate":
        """A value without intervals."""
        return cls(*(Interval.none(value, why) for _ in KINDS))

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Estimate":
        """From what `to_json` gives.

        What an older version wrote has one interval, a bootstrap that was too narrow: only its
        value is read.

        Raises:
          LookupError, TypeError, ValueError: it is something else.
        """
        value = math.nan if found["value"] is None else float(found["value"])
        if "low" in found:
            return cls.none(value, OLDER)
        return cls(*(_interval(value, found[kind]) for kind in KINDS))


def _interval(value: float, found: Mapping[str, Any]) -> Interval:
    if found["low"] is None:
        return Interval.none(value, str(found["why"]))
    return Interval(value, float(found["low"]), float(found["high"]), float(found["freedom"]))


def missing_notes(
    shown: Iterable[Estimate], kinds: Iterable[str] = ("over_instances", "over_clients")
) -> list[str]:
    """Which intervals of some values are missing, and why; a sentence each.

    Args:
      shown: the values.
      kinds: of the intervals that are shown.

    >>> missing_notes([Estimate.none(1.0, "3 clients, 4 are needed")], ["over_clients"])
    ['No interval over clients: 3 clients, 4 are needed.']
    """
    found: dict[tuple[str, str], None] = {}
    shown = list(shown)
    for kind in kinds:
        for estimate in shown:
            span: Interval = getattr(estimate, kind)
            if span.known and not span.bounded:
                found[kind.replace("_", " "), span.why] = None
    whys = {why: [k for k, own in found if own == why] for _, why in found}
    return [f"No interval {' and '.join(kinds)}: {why}." for why, kinds in whys.items()]
