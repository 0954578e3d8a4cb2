"""What of a program's memory traffic stays in a chip's own fast memory.

A TPU has some 100 MB of memory beside its units (VMEM). Its compiler copies there what is used
next, marks the layouts of such arrays with S(1), and counts their bytes as those of any others.
They take none of the bandwidth of the chip's main memory (HBM).
"""

import math
import re
from collections.abc import Iterator

# bf16[66,248,576]{1,2,0:T(8,128)(2,1)S(1)}. Tiles are TPUs': elsewhere S(1) is another memory.
_SHAPE = re.compile(r"\b([a-z]+)(\d*)\w*\[([\d,]*)\](?:\{([^}]*)\})?")
_FAST = re.compile(r"T\(.*S\(1\)")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$", re.MULTILINE)
_OPERATION = re.compile(r"\s([a-z][\w\-]*)\(")
_NAME = re.compile(r"%([\w.\-]+)")
# They move nothing, or what they move is counted where it starts or in their own computation.
_STILL = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("while", "conditional", "call", "iota", "partition-id", "replica-id"),
    *("optimization-barrier", "opt-barrier"),
}


def fast_share(computation: str) -> float:
    '''The share of the bytes read and written by a computation that are in fast memory.

    Args:
      computation: its HLO text, without those of the computations that it calls.

    >>> program = """
    ...   %x = f32[8,128]{1,0:T(8,128)} parameter(0)
    ...   %y = f32[8,128]{1,0:T(8,128)S(1)} negate(%x)
    ...   %z = f32[8,128]{1,0:T(8,128)} add(%x, %y)
    ... """
    >>> fast_share(program)
    0.4
    '''
    types: dict[str, str] = {}
    fast = everything = 0.0
    for name, rest in _INSTRUCTION.findall(computation):
        found = _OPERATION.search(rest)
        if found is None:
            continue
        types[name] = rest[: found.start()]
        operation = found[1]
        if operation in _STILL or operation.endswith("-done"):
            continue
        # A start's result names its operand beside what becomes of it.
        operands = [] if operation.endswith("-start") else _operands(rest[found.end() - 1 :])
        for kind in (types[name], *(types.get(operand, "") for operand in operands)):
            for size, is_fast in _arrays(kind):
                everything += size
                fast += size * is_fast
    return fast / everything if everything else 0.0


def _operands(call: str) -> list[str]:
    """The names between an operation's parentheses."""
    depth = 0
    for place, character in enumerate(call):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return _NAME.findall(call[: place + 1])
    return []


def _arrays(kind: str) -> Iterator[tuple[float, bool]]:
    """Bytes of every array of a type, and whether it lies in fast memory."""
    for letters, bits, dims, layout in _SHAPE.findall(kind):
        count = math.prod(int(size) for size in dims.split(",") if size)
        yield (
            count * (int(bits) if bits else 8 * (letters == "pred")) / 8,
            bool(_FAST.search(layout)),
        )
