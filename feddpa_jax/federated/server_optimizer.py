"""Server optimizers: how the server follows the mean change of a round's participants.

Hsu, Qi, Brown: *Measuring the Effects of Non-Identical Data Distribution*, arXiv 1909.06335
(FedAvgM); Reddi et al.: *Adaptive Federated Optimization*, ICLR 2021, arXiv 2003.00295 (FedAdagrad,
FedYogi, FedAdam: Algorithm 2). With the mean change D = sum over c of share_c * (x_c - x), and
m = 0 and v = tau^2 before the first round,

    momentum   m <- b1 m + D;                                           x <- x + eta m
    adagrad    m <- D,                  v <- v + D^2
    yogi       m <- b1 m + (1 - b1) D,  v <- v - (1 - b2) D^2 sign(v - D^2)
    adam       m <- b1 m + (1 - b1) D,  v <- b2 v + (1 - b2) D^2
               of these three                                x <- x + eta m / (sqrt(v) + tau)

b1 = 0.9 (0 of adagrad), b2 = 0.99, tau = 1e-3. As in the text there is no bias correction. optax's
optimizers of these names differ: `adam` and `yogi` correct the bias and begin with v = 0 and 1e-6,
`adagrad` begins with 0.1 and has its constant inside the root.

Every leaf that is sent has its own m and v, which rest in rounds that do not send it.
"""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from feddpa_jax.federated.leaves import pick
from feddpa_jax.federated.server import replaced

# The part of the server that holds the optimizers' states, by phase.
PART = "optimizer"

Kind = Literal["momentum", "adam", "yogi", "adagrad"]

# Momentum's is the paper's. The others move a number by some eta a round: 1e-3, which LoRA needs,
# is the value in OpenFedLLM's scripts; the papers search it from 1e-3 to 10 for whole models.
RATES: dict[str, float] = {"momentum": 1.0, "adam": 1e-3, "yogi": 1e-3, "adagrad": 1e-3}


def server_optimizer(
    kind: Kind,
    rate: float | None = None,
    *,
    beta_1: float | None = None,
    beta_2: float = 0.99,
    tau: float = 1e-3,
) -> optax.GradientTransformation:
    """An optimizer of the server; its updates are added to what the participants started from.

    Args:
      kind: which.
      rate: eta; `RATES`' if None.
      beta_1: b1; the paper's if None.
      beta_2: b2.
      tau: keeps the quotient finite.

    >>> tx = server_optimizer("momentum", 0.5)
    >>> step, state = tx.update({"x": jnp.ones(())}, tx.init({"x": jnp.zeros(())}))
    >>> float(step["x"])
    0.5
    """
    eta = RATES[kind] if rate is None else rate
    b1 = (0.0 if kind == "adagrad" else 0.9) if beta_1 is None else beta_1
    fresh = 1.0 if kind == "momentum" else 1.0 - b1

    def second(v: jax.Array, change: jax.Array) -> jax.Array:
        square = jnp.square(change)
        if kind == "adagrad":
            return v + square
        if kind == "yogi":
            return v - (1.0 - beta_2) * square * jnp.sign(v - square)
        return beta_2 * v + (1.0 - beta_2) * square

    def init(params: Any) -> dict[str, Any]:
        state = {"first": jax.tree.map(jnp.zeros_like, params)}
        if kind != "momentum":
            state["second"] = jax.tree.map(lambda leaf: jnp.full_like(leaf, tau**2), params)
        return state

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        first = jax.tree.map(lambda m, d: b1 * m + fresh * d, state["first"], updates)
        if kind == "momentum":
            return jax.tree.map(lambda m: eta * m, first), {"first": first}
        squares = jax.tree.map(second, state["second"], updates)
        step = jax.tree.map(lambda m, v: eta * m / (jnp.sqrt(v) + tau), first, squares)
        return step, {"first": first, "second": squares}

    return optax.GradientTransformation(init, update)


def follow(
    optimizer: optax.GradientTransformation,
    phase: str,
    names: tuple[str, ...],
    mean: Mapping[str, Any],
    server: Mapping[str, Any],
) -> dict[str, Any]:
    """The server's step on a mean, as a `ServerStep` gives it.

    Args:
      optimizer: whose state is a dict of trees like the leaves.
      phase: its name, under which the state lies.
      names: of the leaves that were sent.
      mean: the mean of these leaves.
      server: all parts.
    """
    before = pick(server, names)
    change = jax.tree.map(jnp.subtract, mean, before)
    states = server[PART][phase]
    own: Any = {moment: pick(tree, names) for moment, tree in states.items()}
    new: Any
    step, new = optimizer.update(change, own, before)
    after = jax.tree.map(jnp.add, before, step)
    kept = {
        moment: {**states[moment], **_all(states[moment], tree)} for moment, tree in new.items()
    }
    return {**_all(server, after), PART: {**server[PART], phase: kept}}


def _all(parts: Mapping[str, Any], leaves: Mapping[str, Any]) -> dict[str, Any]:
    return {part: replaced(parts[part], tree) for part, tree in leaves.items()}
