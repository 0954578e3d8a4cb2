"""What a compiled program sends between devices, read off its text."""

import re
from typing import NamedTuple

_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|ragged-all-to-all"
_CALL = re.compile(rf"= (?P<type>.+?) (?P<kind>{_KINDS})(?P<start>-start)?\(")
_SHAPE = re.compile(r"\b(?P<kind>pred|bf16|f8\w*|[fsuc](?P<bits>\d+))\[(?P<sizes>[\d,]*)\]")


class Collectives(NamedTuple):
    """All collectives of one kind.

    Attributes:
      count: how many a call of the program has.
      size: bytes of their results on one device.
    """

    count: int
    size: int


def find_collectives(text: str) -> dict[str, Collectives]:
    """The collectives of a compiled program, by kind.

    Args:
      text: its HLO, `compiled.as_text()`.

    >>> find_collectives("%a = f32[8,4]{1,0} all-reduce(%b), to_apply=%add")
    {'all-reduce': Collectives(count=1, size=128)}
    """
    found: dict[str, Collectives] = {}
    for call in _CALL.finditer(text):
        sizes = [_bytes(shape) for shape in _SHAPE.finditer(call["type"])]
        if call["start"] and call["kind"] in ("all-gather", "collective-permute"):
            # Operands and results stand together in what an asynchronous start gives.
            sizes = [size for size in sizes if size > 4]
            sizes = sizes[len(sizes) // 2 :]
        count, size = found.get(call["kind"], Collectives(0, 0))
        found[call["kind"]] = Collectives(count + 1, size + sum(sizes))
    return found


def _bytes(shape: re.Match[str]) -> int:
    count = 1
    for size in filter(None, shape["sizes"].split(",")):
        count *= int(size)
    bits = {"pred": 8, "bf16": 16}.get(shape["kind"], int(shape["bits"] or 8))
    return count * bits // 8
