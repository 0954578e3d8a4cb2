"""Clients whose shares of each label are drawn from a Dirichlet distribution.

Yurochkin, Agarwal, Ghosh, Greenewald, Hoang, Khazaeni, *Bayesian Nonparametric Federated Learning
of Neural Networks*, ICML 2019, arXiv 1905.12022: client c has the part p_ck of label k's examples,

    p_:k ~ Dirichlet(alpha, ..., alpha),  that is  p_ck = g_ck / sum_c g_ck,  g_ck ~ Gamma(alpha).

A small alpha gives clients one label or two, a large one gives all the same mix. With n_k examples
of label k, the mix of client c is in proportion to n_k g_ck. With sizes of the user's choice, each
client draws so many examples from that mix, as in Hsu, Qi, Brown, *Measuring the Effects of
Non-Identical Data Distribution for Federated Visual Classification*, 2019, arXiv 1909.06335.
"""

from typing import Annotated, Literal

import numpy as np
from annotated_types import Gt, Le

from feddpa_jax.checked_settings import Count
from feddpa_jax.partitioning.client_sizes import Sigma, Sizes, client_sizes
from feddpa_jax.partitioning.partitioner import LEFT_OUT, PARTITIONERS
from feddpa_jax.partitioning.pool import Labels, Pool
from feddpa_jax.types import UserError

# Clients times labels, which take eight bytes each.
MOST_SHARES = 2**25
# How strongly a client that is behind its share is preferred for the next whole example.
_CATCH_UP = 4.0


@PARTITIONERS.register
def dirichlet(
    pool: Pool,
    rng: np.random.Generator,
    column: str,
    *,
    alpha: Annotated[float, Gt(0), Le(1e6)] = 0.5,
    sizes: Literal["drawn"] | Sizes = "drawn",
    sigma: Sigma = 1.0,
    tries: Count = 100,
) -> np.ndarray:
    """Gives each client a mix of labels of its own.

    Args:
      pool: what is divided.
      rng: the randomness.
      column: of the labels.
      alpha: the concentration: 0.1 is far from IID, 1000 is near it.
      sizes: "drawn", what the shares make it; or as of `client_sizes`. Then no try is needed, and
        when a label is used up, the clients that are left draw from the others.
      sigma: as of `client_sizes`.
      tries: of "drawn". After each, the shares of the clients with too few examples are drawn anew.
        (Drawing all anew would not end: of 1,000 clients, some have too few in almost any draw.)

    Returns:
      Each example's client: int64 [I].

    Raises:
      UserError: after all tries some client has too few examples, or the sizes do not fit.
    """
    labels = pool.labels(column)
    if sizes != "drawn":
        sizes_C = client_sizes(sizes, sigma, pool, rng, of="dirichlet")
        return _filled(labels, alpha, rng.permutation(len(sizes_C)), sizes_C, rng)
    clients = pool.needed_clients()
    if clients * len(labels.names) > MOST_SHARES:
        raise UserError(
            f"partition: dirichlet: {clients} clients times {len(labels.names)} labels of column "
            f"{column!r} take too much memory; name a column with fewer labels, or set sizes, as "
            f"in dirichlet({column}, alpha={alpha:g}, sizes=equal)"
        )
    log_g_CK = _log_gamma(alpha, (clients, len(labels.names)), rng)
    for _ in range(tries):
        count_CK = _whole_counts(log_g_CK, labels.counts, rng)
        low_C = count_CK.sum(axis=1) < pool.minimum
        if not low_C.any():
            return _dealt(labels, count_CK, rng)
        log_g_CK[low_C] = _log_gamma(alpha, (int(low_C.sum()), len(labels.names)), rng)
    raise UserError(
        f"partition: dirichlet: after {tries} tries {low_C.sum()} of {clients} clients have fewer "
        f"examples than the minimum of {pool.minimum}; raise alpha or tries, lower clients or "
        f"minimum, or set sizes, as in dirichlet({column}, alpha={alpha:g}, sizes=equal)"
    )


def _log_gamma(alpha: float, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Logarithms of Gamma(alpha) draws, which for a small alpha are too small for a float.

    Source: Gamma(alpha) = Gamma(alpha + 1) U^(1/alpha), Marsaglia and Tsang 2000, section 6.
    """
    # 1 - U is never 0.
    return np.log(rng.standard_gamma(alpha + 1, shape)) + np.log1p(-rng.random(shape)) / alpha


def _whole_counts(
    log_g_CK: np.ndarray, count_K: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Whole numbers of examples near the clients' shares of each label: int32 [C, K].

    What rounding down leaves over goes to clients at random by the fractions they lost, with those
    first that are behind in all labels so far: so that clients with equal shares have equal sizes.
    """
    clients = len(log_g_CK)
    count_CK = np.empty(log_g_CK.shape, np.int32)
    behind_C = np.zeros(clients)
    for k in np.argsort(-count_K, kind="stable"):
        g_C = np.exp(log_g_CK[:, k] - log_g_CK[:, k].max())
        share_C = g_C / g_C.sum() * count_K[k]
        whole_C = np.floor(share_C)
        rest = int(count_K[k] - whole_C.sum())
        with np.errstate(divide="ignore"):
            likely_C = np.log(share_C - whole_C) + _CATCH_UP * behind_C + rng.gumbel(size=clients)
        # Rounding of the division may leave a fraction of none; a client more is then passed over.
        first_C = np.argsort(-likely_C, kind="stable")[:rest]
        whole_C[first_C] += 1
        behind_C += share_C - whole_C
        count_CK[:, k] = whole_C
    return count_CK


def _dealt(labels: Labels, count_CK: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each example's client, where clients have so many of each label."""
    client_I = np.empty(len(labels.label_I), np.int64)
    order = rng.permutation(len(client_I))
    by_label = order[np.argsort(labels.label_I[order], kind="stable")]
    clients, start = np.arange(len(count_CK)), 0
    for k, count in enumerate(labels.counts):
        client_I[by_label[start : start + count]] = np.repeat(clients, count_CK[:, k])
        start += count
    return client_I


def _filled(
    labels: Labels,
    alpha: float,
    order_C: np.ndarray,
    sizes_C: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Each example's client, where clients of given sizes draw from mixes of their own in turn."""
    count_K = labels.counts
    order = rng.permutation(len(labels.label_I))
    by_label = order[np.argsort(labels.label_I[order], kind="stable")]
    next_K = np.cumsum(count_K) - count_K
    end_K = np.cumsum(count_K)
    client_I = np.full(len(labels.label_I), LEFT_OUT)
    for c in order_C:
        log_weight_K = np.log(count_K) + _log_gamma(alpha, count_K.shape, rng)
        for k, taken in enumerate(_draw(log_weight_K, end_K - next_K, int(sizes_C[c]), rng)):
            if taken:
                client_I[by_label[next_K[k] : next_K[k] + taken]] = c
                next_K[k] += taken
    return client_I


def _draw(
    log_weight_K: np.ndarray, left_K: np.ndarray, size: int, rng: np.random.Generator
) -> np.ndarray:
    """How many of each label a client draws; of those that are used up, none."""
    drawn_K = np.zeros_like(left_K)
    while size:
        open_K = np.flatnonzero(left_K > drawn_K)
        log_K = log_weight_K[open_K]
        weight_K = np.exp(log_K - log_K.max())
        more_K = rng.multinomial(size, weight_K / weight_K.sum())
        more_K = np.minimum(more_K, (left_K - drawn_K)[open_K])
        drawn_K[open_K] += more_K
        size -= int(more_K.sum())
    return drawn_K
