"""Options of any federated method with a mean, in numpy: server optimizers and a rate by round.

With the mean change D of a round, sum p_i (x_i - x), and m = 0, v = tau^2 before the first round:

    FedAvgM     1909.06335   m <- beta m + D;                       x <- x + eta m
    FedAdagrad  2003.00295   m <- b1 m + (1 - b1) D, v <- v + D^2
    FedYogi                  m as above,  v <- v - (1 - b2) D^2 sign(v - D^2)
    FedAdam                  m as above,  v <- b2 v + (1 - b2) D^2
                             x <- x + eta m / (sqrt(v) + tau), of all three; no bias correction

FedProx (1812.06127) is `Setting.proximal` of `reference_aggregation`.
"""

import math
from collections.abc import Callable

import numpy as np

from tests.parity.reference_loop import Adapter


class ServerOptimizer:
    """A server's step on the mean change, with its state; each leaf that is sent has its own.

    Attributes:
      kind: "momentum", "adagrad", "yogi" or "adam".
      rate: eta.
      beta_1: of m; the papers have 0 for Adagrad, 0.9 else.
      beta_2: of v.
      tau: keeps the quotient finite; its square is the first v.
    """

    def __init__(
        self,
        kind: str,
        rate: float,
        *,
        beta_1: float | None = None,
        beta_2: float = 0.99,
        tau: float = 1e-3,
    ):
        """Args: see the attributes; beta_1 is the paper's if None."""
        assert kind in ("momentum", "adagrad", "yogi", "adam"), kind
        self.kind, self.rate, self.beta_2, self.tau = kind, rate, beta_2, tau
        self.beta_1 = (0.0 if kind == "adagrad" else 0.9) if beta_1 is None else beta_1
        self.states: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}

    def __call__(self, before: Adapter, mean: Adapter, leaves: str) -> Adapter:
        """The common adapter after a round; leaves that were not sent stay as they were."""
        return {
            target: {
                leaf: self.step((target, leaf), pair[leaf], mean[target][leaf])
                if leaf in leaves
                else pair[leaf]
                for leaf in "ab"
            }
            for target, pair in before.items()
        }

    def step(self, key: tuple[str, str], before: np.ndarray, mean: np.ndarray) -> np.ndarray:
        """One leaf's step, in float64."""
        change = np.asarray(mean, np.float64) - before
        m, v = self.states.get(key, (np.zeros_like(change), np.full_like(change, self.tau**2)))
        if self.kind == "momentum":
            m = self.beta_1 * m + change
            self.states[key] = m, v
            return before + self.rate * m
        m = self.beta_1 * m + (1 - self.beta_1) * change
        square = change**2
        if self.kind == "adagrad":
            v = v + square
        elif self.kind == "yogi":
            v = v - (1 - self.beta_2) * square * np.sign(v - square)
        else:
            v = self.beta_2 * v + (1 - self.beta_2) * square
        self.states[key] = m, v
        return before + self.rate * m / (np.sqrt(v) + self.tau)


def cosine(rounds: int) -> Callable[[int], float]:
    """The learning rate's factor in each round: 1 in the first, near 0 in the last."""
    return lambda number: 0.5 * (1 + math.cos(math.pi * number / rounds))
