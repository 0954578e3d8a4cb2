"""How quantized weights are laid out: what a code stands for, and how many share a scale.

A frozen map W [in, out] is cut along its inputs into groups of neighbouring weights of one output,
as GGUF files and bitsandbytes cut it. Every weight is a code; every group has a scale:

    w = scale * value(code) (+ minimum)

- `int8`: value(code) = code, -127 .. 127. GGUF's Q8_0 is the same layout.
- `nf4`: value(code) is one of 16 quantiles of a normal distribution, brought to [-1, 1]:
  NormalFloat of Dettmers et al., *QLoRA* (arXiv 2305.14314), appendix E. Their double quantization
  of the scales is left out: it would save 0.12 bits a weight.
- `q4_0`, `q4_1`, `q4_k`: GGUF's own, kept as they are stored. In `q4_k`, scale and minimum of a
  group are 6-bit numbers, times units that eight groups share.
"""

import math
from typing import NamedTuple

import numpy as np

NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


class Layout(NamedTuple):
    """A way of laying out weights.

    Attributes:
      group: weights that share a scale.
      packed: whether codes have 4 bits, two in a byte: those of a group's first half are the low
        bits, those of its second half the high bits.
      first: the value of code 0 where values are integers that follow each other.
      book: the value of each code where they are not; else empty.
      minimum: whether groups have a minimum besides.
      unit: groups that share a unit of their scales; 0 where scales are numbers of their own.
    """

    group: int
    packed: bool
    first: int = 0
    book: tuple[float, ...] = ()
    minimum: bool = False
    unit: int = 0

    def shapes(self, shape: tuple[int, int]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of each array that a map's weights are held in.

        Args:
          shape: the map's sizes D, E. Inputs are filled up to whole groups.
        """
        size_in, size_out = shape
        groups = -(-size_in // (self.group * (self.unit or 1))) * (self.unit or 1)
        codes = (groups, self.group // 2 if self.packed else self.group, size_out)
        each, number = (groups, size_out), np.dtype(np.uint8 if self.unit else np.float16)
        found = {
            "codes": (codes, np.dtype(np.uint8 if self.packed else np.int8)),
            "scale": (each, number),
        }
        if self.minimum:
            found["minimum"] = (each, number)
        if self.unit:
            units = (groups // self.unit, size_out)
            found["scale_unit"] = (units, np.dtype(np.float16))
            found["minimum_unit"] = (units, np.dtype(np.float16))
        return found

    def bits(self) -> float:
        """Bits a weight takes, its share of the scales included.

        >>> LAYOUTS["int8"].bits(), LAYOUTS["nf4"].bits(), LAYOUTS["q4_k"].bits()
        (8.5, 4.25, 4.625)
        """
        rows = self.group * (self.unit or 1)
        sizes = self.shapes((rows, 1)).values()
        return 8 * sum(math.prod(shape) * dtype.itemsize for shape, dtype in sizes) / rows


LAYOUTS = {
    "int8": Layout(32, packed=False),
    "nf4": Layout(64, packed=True, book=NF4),
    "q4_0": Layout(32, packed=True, first=-8),
    "q4_1": Layout(32, packed=True, minimum=True),
    "q4_k": Layout(32, packed=True, minimum=True, unit=8),
}
# Those that weights are brought into; the others are only found in files.
CHOICES = ("int8", "nf4")
