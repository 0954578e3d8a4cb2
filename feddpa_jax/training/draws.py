"""Numbers that clients draw, each from words such as the seed, the round and its own id.

They are those of NumPy's generators, `np.random.default_rng(words).random()`, bit for bit, but of
all clients at once: making a generator for each of 100,000 takes seconds, this takes hundredths.

The words go through `SeedSequence`, which is M. E. O'Neill's *Developing a seed_seq Alternative*
(pcg-random.org, 2015), into PCG64: O'Neill, *PCG: A Family of Simple Fast Space-Efficient
Statistically Good Algorithms for Random Number Generation*, HMC-CS-2014-0905, as `XSL RR 128/64`.
"""

from collections.abc import Iterator

import numpy as np

# SeedSequence's constants, and its pool of four words.
_INIT_A, _MULT_A = 0x43B0D7E5, 0x931E8875
_INIT_B, _MULT_B = 0x8B51F9DD, 0x58F38DED
_MIX_L, _MIX_R = np.uint32(0xCA01F9DD), np.uint32(0x4973F715)
_POOL, _HALF = 4, np.uint32(16)
# PCG64's multiplier, its high and its low half.
_MULT = (np.uint64(2549297995355413924), np.uint64(4865540595714422341))
_LOW, _32 = np.uint64(0xFFFFFFFF), np.uint64(32)

# A number of 128 bits for each client: its high and its low half, uint64 [C].
_Wide = tuple[np.ndarray, np.ndarray]


def uniform(*words: int | np.ndarray) -> np.ndarray:
    """A number in [0, 1) for each client: float64 [C].

    Args:
      words: at most four numbers of 32 bits, of which at least one is an array, [C]. They are told
        apart by their places; 0 at the end is as if it were not there.

    >>> ids = np.array([5, 6])
    >>> uniform(7, 0, ids, 1) == [np.random.default_rng([7, 0, i, 1]).random() for i in (5, 6)]
    array([ True,  True])
    """
    assert 0 < len(words) <= _POOL
    arrays = np.broadcast_arrays(*(np.asarray(word, np.uint32) for word in words))
    high_C, low_C, increment_high_C, increment_low_C = _seeds([np.ravel(own) for own in arrays])
    one = np.uint64(1)
    increment = (
        (increment_high_C << one) | (increment_low_C >> np.uint64(63)),
        (increment_low_C << one) | one,
    )
    # The generator begins at the increment plus its seed, a step behind; a draw is a step more.
    state = _sum(increment, (high_C, low_C))
    for _ in range(2):
        state = _sum(_product(state), increment)
    folded_C, turn_C = state[0] ^ state[1], state[0] >> np.uint64(58)
    turned_C = (folded_C >> turn_C) | (folded_C << ((np.uint64(64) - turn_C) & np.uint64(63)))
    return (turned_C >> np.uint64(11)) * 2.0**-53


def _constants(first: int, factor: int) -> Iterator[tuple[np.uint32, np.uint32]]:
    """SeedSequence's running constant, before and after each multiplication."""
    while True:
        after = first * factor & 0xFFFFFFFF
        yield np.uint32(first), np.uint32(after)
        first = after


def _hashed(word_C: np.ndarray, constants: Iterator[tuple[np.uint32, np.uint32]]) -> np.ndarray:
    before, after = next(constants)
    word_C = (word_C ^ before) * after
    return word_C ^ (word_C >> _HALF)


def _seeds(words: list[np.ndarray]) -> list[np.ndarray]:
    """`SeedSequence(words).generate_state(4, np.uint64)` for each client, four of uint64 [C]."""
    constants = _constants(_INIT_A, _MULT_A)
    words = [*words, *[np.zeros_like(words[0])] * (_POOL - len(words))]
    pool = [_hashed(word_C, constants) for word_C in words]
    for source in range(_POOL):
        for place in range(_POOL):
            if place != source:
                mixed_C = _MIX_L * pool[place] - _MIX_R * _hashed(pool[source], constants)
                pool[place] = mixed_C ^ (mixed_C >> _HALF)
    constants = _constants(_INIT_B, _MULT_B)
    made = [_hashed(pool[i % _POOL], constants).astype(np.uint64) for i in range(2 * _POOL)]
    return [low | (high << _32) for low, high in zip(made[::2], made[1::2], strict=True)]


def _sum(a: _Wide, b: _Wide) -> _Wide:
    low_C = a[1] + b[1]
    return a[0] + b[0] + (low_C < b[1]), low_C


def _product(a: _Wide) -> _Wide:
    """A number times the multiplier, modulo 2^128."""
    high, low = _MULT
    top_C, bottom_C = a[1] >> _32, a[1] & _LOW
    above, below = low >> _32, low & _LOW
    first_C = bottom_C * below
    middle_C = top_C * below + (first_C >> _32)
    carried_C = bottom_C * above + (middle_C & _LOW)
    carry_C = top_C * above + (middle_C >> _32) + (carried_C >> _32)
    return carry_C + a[0] * low + a[1] * high, a[1] * low
