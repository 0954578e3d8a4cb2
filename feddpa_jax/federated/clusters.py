"""Clusters of clients by what they have learned: distances, average linkage, silhouette.

    d(i, j) = mean over adapted maps of 1 - <B_i, B_j> / (|B_i| |B_j|)

of the clients' up projections B, as FedLEASE (arXiv 2509.15087) has it. The number of clusters is
given, or is the one with the greatest silhouette (Rousseeuw, *Silhouettes*, 1987):

    s(i) = (b - a) / max(a, b),

a the mean distance to the others of i's cluster, b the least mean distance to another cluster; 0
of a client that is alone in its cluster.
"""

from typing import Any

import numpy as np

from feddpa_jax.types import UserError


def distances(adapters_C: Any) -> np.ndarray:
    """D of every two clients, float64 [C, C].

    Args:
      adapters_C: {target: {"b": [C, L, R, E], ...}}, on the host.
    """
    cosines, maps = [], 0
    for leaves in adapters_C.values():
        b_CLX = np.asarray(leaves["b"], np.float64)
        b_CLX = b_CLX.reshape(*b_CLX.shape[:2], -1)
        size_CL1 = np.linalg.norm(b_CLX, axis=2, keepdims=True)
        unit_LCX = (b_CLX / np.maximum(size_CL1, 1e-30)).swapaxes(0, 1)
        cosines.append((unit_LCX @ unit_LCX.swapaxes(1, 2)).sum(axis=0))
        maps += b_CLX.shape[1]
    distance_CC = 1.0 - np.sum(cosines, axis=0) / maps
    np.fill_diagonal(distance_CC, 0.0)
    return np.maximum(0.5 * (distance_CC + distance_CC.T), 0.0)


def allocate(distance_CC: np.ndarray, *, count: int, most: int) -> np.ndarray:
    """The cluster of each client, [C]; numbered in the order of their first clients.

    Args:
      distance_CC: as `distances`.
      count: how many clusters; 0: from 2 to `most`, the first with the greatest silhouette.
      most: clusters.

    Raises:
      UserError: the distances do not tell so many clusters apart, and one would be empty.
    """
    clients = len(distance_CC)
    tried = [count] if count else range(2, min(most, clients - 1) + 1)
    found = [of_C for number in tried if (of_C := _cut(distance_CC, number)) is not None]
    if not found:
        wanted = count or "two"
        raise UserError(
            f"fed.options: clusters: the warm-up does not tell {wanted} clusters of "
            f"{clients} clients apart, so one would be empty; ask for fewer"
        )
    return max(found, key=lambda of_C: silhouette(distance_CC, of_C)) if not count else found[0]


def _cut(distance_CC: np.ndarray, count: int) -> np.ndarray | None:
    """So many clusters by average linkage; None where ties leave fewer."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    if count == 1:
        return np.zeros(len(distance_CC), np.int32)
    tree = linkage(squareform(distance_CC, checks=False), "average")
    label_C = fcluster(tree, count, "maxclust")
    _, first, of_C = np.unique(label_C, return_index=True, return_inverse=True)
    if len(first) < count:
        return None
    return np.argsort(np.argsort(first))[of_C].astype(np.int32)


def silhouette(distance_CC: np.ndarray, of_C: np.ndarray) -> float:
    """The mean of s over the clients."""
    member_CM = of_C[:, None] == np.arange(of_C.max() + 1)[None]
    total_CM, size_M = distance_CC @ member_CM, member_CM.sum(axis=0)
    own_C, mates_C = total_CM[member_CM], size_M[of_C] - 1
    a_C = own_C / np.maximum(mates_C, 1)
    b_C = np.where(member_CM, np.inf, total_CM / size_M).min(axis=1)
    s_C = (b_C - a_C) / np.maximum(np.maximum(a_C, b_C), 1e-30)
    return float(np.where(mates_C > 0, s_C, 0.0).mean())


def means_by_cluster(tree_K: Any, share_K: np.ndarray, of_K: np.ndarray, old_M: Any) -> Any:
    """Each cluster's mean by shares, leaf by leaf; one without a participant stays as it is.

    Args:
      tree_K: what K participants sent, {target: {leaf: [K, ...]}}.
      share_K: their shares.
      of_K: their clusters.
      old_M: the clusters' values before, [M, ...].
    """
    number_M = np.arange(len(next(iter(next(iter(old_M.values())).values()))))
    weight_MK = np.where(of_K[None] == number_M[:, None], share_K[None], 0.0)
    total_M = weight_MK.sum(axis=1)
    weight_MK = (weight_MK / np.where(total_M > 0.0, total_M, 1.0)[:, None]).astype(np.float32)

    def mean(new_K: np.ndarray, old_M: np.ndarray) -> np.ndarray:
        mean_M = np.stack(
            [np.tensordot(own_K[own_K > 0], new_K[own_K > 0], axes=1) for own_K in weight_MK]
        )
        ones = [1] * (new_K.ndim - 1)
        return np.where(total_M.reshape(-1, *ones) > 0.0, mean_M, np.asarray(old_M))

    return {
        target: {name: mean(leaf_K, old_M[target][name]) for name, leaf_K in leaves.items()}
        for target, leaves in tree_K.items()
    }
