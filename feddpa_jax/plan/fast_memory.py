"""What of a program's memory traffic stays in a TPU's fast memory.

A v5 TPU has some 100 MB of memory beside its units (VMEM). Its compiler copies there what is used
next, marks the layouts of such arrays with S(1), and counts their bytes as those of any others.
They take none of the bandwidth of the chip's main memory (HBM).
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

# bf16[66,248,576]{1,2,0:T(8,128)(2,1)S(1)}. Tiles are TPUs': elsewhere S(1) is another memory.
_SHAPE = re.compile(r"\b([a-z]+)(\d*)\w*\[([\d,]*)\](?:\{([^}]*)\})?")
_FAST = re.compile(r"T\(.*S\(1\)")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$", re.MULTILINE)
_OPERATION = re.compile(r"\s([a-z][\w\-]*)\(")
_NAME = re.compile(r"%([\w.\-]+)")
# They move nothing, or no compiler counts what they move, or it is counted in their computation.
_STILL = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("while", "conditional", "call", "custom-call", "async-update", "partition-id", "replica-id"),
    *("optimization-barrier", "opt-barrier"),
}


class Traffic(NamedTuple):
    """Bytes that operations read and write: in fast memory, and in both."""

    fast: float
    all: float


class _Array(NamedTuple):
    dims: tuple[int, ...]
    size: float
    fast: bool


def traffic_of(computation: str, rounds: int = 1) -> Traffic:
    """What a computation's operations read and write, by their operands and results.

    Args:
      computation: its HLO text, without those of the computations that it calls.
      rounds: of a loop, if it is one's body. A round reads or writes one part of an array of as
        many parts, as compilers count it; what it writes to is not read.

    >>> program = '''
    ...   %x = f32[8,128]{1,0:T(8,128)} parameter(0)
    ...   %y = f32[8,128]{1,0:T(8,128)S(1)} negate(%x)
    ...   %z = f32[8,128]{1,0:T(8,128)} add(%x, %y)
    ... '''
    >>> traffic_of(program)
    Traffic(fast=8192.0, all=20480.0)
    """
    arrays: dict[str, list[_Array]] = {}
    moved: list[_Array] = []
    for name, rest in _INSTRUCTION.findall(computation):
        found = _OPERATION.search(rest)
        if found is None:
            continue
        results = arrays[name] = list(_arrays(rest[: found.start()], rounds))
        operation = found[1]
        if operation in _STILL or operation.endswith("-done"):
            continue
        moved += results
        # A copy's start has its operand in its result.
        if not (operation.endswith("-start") and rest.startswith("(")):
            written = {own.dims for own in results if rounds > 1 and own.dims[:1] == (rounds,)}
            read = [own for o in _operands(rest[found.end() - 1 :]) for own in arrays.get(o, ())]
            moved += [own for own in read if own.dims not in written]
    return Traffic(sum(own.size for own in moved if own.fast), sum(own.size for own in moved))


def _operands(call: str) -> list[str]:
    """The names between an operation's parentheses."""
    depth = 0
    for place, character in enumerate(call):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return _NAME.findall(call[: place + 1])
    return []


def _arrays(kind: str, rounds: int) -> Iterator[_Array]:
    """The arrays of a type, each with its bytes, or those of a round's part."""
    for letters, bits, dims, layout in _SHAPE.findall(kind):
        sizes = tuple(int(size) for size in dims.split(",") if size)
        parts = rounds if rounds > 1 and len(sizes) > 1 and sizes[0] == rounds else 1
        each = (int(bits) if bits else 8 * (letters == "pred")) / 8
        yield _Array(sizes, math.prod(sizes) * each / parts, bool(_FAST.search(layout)))
