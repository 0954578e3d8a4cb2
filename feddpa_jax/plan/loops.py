"""What a compiled program costs, with every round of its loops: the compiler counts one round.

Loops are a step's chunks of the head's positions, and its layers where they are stacked.
"""

import importlib
import logging
import re
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any, NamedTuple

import jax
from jax.extend.backend import get_backend

from feddpa_jax.plan.fast_memory import traffic_of

_log = logging.getLogger(__name__)


class Cost(NamedTuple):
    """Of a program on one device.

    Attributes:
      flops: of one call.
      traffic: bytes that operations read and write.
      main_traffic: of these, bytes of the device's main memory; the others are of a TPU's VMEM. An
        estimate, as operands and results are divided, without what fills their last tiles.
      seconds: of one call; 0 if the compiler does not tell.
    """

    flops: float
    traffic: float
    main_traffic: float
    seconds: float = 0.0


class Loop(NamedTuple):
    """A loop of a program whose rounds are known.

    Attributes:
      inside: the computation that it stands in.
      body: the computation that it repeats.
      rounds: how often.
    """

    inside: str
    body: str
    rounds: int


_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$", re.MULTILINE)
_ENTRY = re.compile(r"^ENTRY %?([\w.\-]+)", re.MULTILINE)
_BRANCHES = re.compile(r" conditional\(.*?branch_computations=\{(.*?)\}")
_NAME = re.compile(r"%?([\w.\-]+)")
_LOOP = re.compile(r" while\(.*?condition=%?([\w.\-]+), body=%?([\w.\-]+)(.*)")
_ROUNDS = re.compile(r"known_trip_count\W+n\W+(\d+)")
_LIMIT = re.compile(r"= s32\[\]\S* constant\((\d+)\)")


def cost_of(compiled: jax.stages.Compiled) -> Cost:
    """What the compiler counts, and every loop's body once for each of its rounds.

    The bodies' share is told by XLA's own analysis of the program's text, and their traffic in the
    measure of the device's compiler. Seconds are the compiler's alone: 0 where there are loops.
    """
    costs: Any = compiled.cost_analysis() or {}
    text = compiled.as_text() or ""
    parts, loops = _computations(text), [loop for loop in find_loops(text) if loop.rounds > 1]
    rounds = {loop.body: loop.rounds for loop in loops}
    # The compiler counts a loop's body once, and the larger branch of a condition.
    counted = {*_ENTRY.findall(text), *(body for _, body, _ in _LOOP.findall(text))}
    counted |= {name for names in _BRANCHES.findall(text) for name in _NAME.findall(names)}
    traffic = costs.get("bytes accessed", 0.0)
    once = Cost(
        costs.get("flops", 0.0),
        traffic,
        traffic * _main_share(parts, sorted(counted), rounds),
        max(costs.get("optimal_seconds") or 0.0, 0.0),
    )
    if not loops:
        return once
    whole = _analysed(text)
    if whole is None:
        _log.warning(
            f"jaxlib {version('jaxlib')} does not tell what loops cost: FLOPs, traffic and seconds "
            "are too low, as every loop counts as one round; use the version in requirements.txt"
        )
        return once
    measure = traffic / whole[1] if whole[1] else 1.0
    inside = {loop.body: loop for loop in loops}
    flops, main_traffic = once.flops, once.main_traffic
    for loop in loops:
        more, bytes_accessed = _analysed(as_entry(text, loop.body)) or (0.0, 0.0)
        times, outer = loop.rounds - 1, inside.get(loop.inside)
        while outer is not None:
            times, outer = times * outer.rounds, inside.get(outer.inside)
        flops += times * more
        traffic += times * bytes_accessed * measure
        body = [loop.body, *(name for _, name, _ in _LOOP.findall(parts[loop.body]))]
        share = _main_share(parts, body, rounds)
        main_traffic += times * bytes_accessed * measure * share
    return Cost(flops, traffic, main_traffic)


def _main_share(parts: dict[str, str], names: list[str], rounds: dict[str, int]) -> float:
    """The share of main memory in the traffic of some computations, each counted once."""
    found = [traffic_of(parts.get(name, ""), rounds.get(name, 1)) for name in names]
    everything = sum(one.all for one in found)
    return 1.0 - sum(one.fast for one in found) / everything if everything else 1.0


def _computations(text: str) -> dict[str, str]:
    """Every computation of a program by name, as text."""
    bounds = [(match.start(), match[1]) for match in _COMPUTATION.finditer(text)]
    ends = [start for start, _ in bounds[1:]] + [len(text)]
    return {name: text[start:end] for (start, name), end in zip(bounds, ends, strict=True)}


def find_loops(text: str) -> Iterator[Loop]:
    """The loops of a compiled program whose rounds its text tells.

    Args:
      text: its HLO, `compiled.as_text()`.
    """
    bodies = _computations(text)
    for name, body in bodies.items():
        for condition, repeated, rest in _LOOP.findall(body):
            limits = _LIMIT.findall(bodies.get(condition, ""))
            if rounds := _ROUNDS.findall(rest) or (limits if len(limits) == 1 else []):
                yield Loop(name, repeated, int(rounds[0]))


def as_entry(text: str, name: str) -> str:
    """The program of one computation of a program."""
    header, _, rest = text.partition("\n")
    title = header.split(",", 1)[0]
    rest = re.sub(r"^ENTRY ", "", rest, flags=re.MULTILINE)
    start = re.compile(rf"^(%?{re.escape(name)} \()", re.MULTILINE)
    return title + "\n" + start.sub(r"ENTRY \1", rest)


def _analysed(text: str) -> tuple[float, float] | None:
    """FLOPs and bytes by XLA's analysis of a text; None if this jaxlib cannot."""
    try:
        hlo, xla = (importlib.import_module(f"jaxlib.{name}") for name in ("_hlo", "_jax"))
        found = xla.hlo_module_cost_analysis(get_backend(), hlo.hlo_module_from_text(text))
    except (ImportError, AttributeError):
        return None
    return found.get("flops", 0.0), found.get("bytes accessed", 0.0)
