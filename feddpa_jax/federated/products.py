"""Sums of products A B by their factors alone: exact, and never as a matrix [D, E].

With A = [A_1 A_2 ..] and B = [B_1; B_2; ..] the sum of the products is A B. Its singular values
come from two QR decompositions and a small core (Q columns, Q the ranks' sum):

    A = P R,   B^T = P' R',   R R'^T = U S V^T,   A B = (P U) S (P' V)^T.

All of it is float64 on the host. Arrays have any number of leading axes before their last two.
"""

from collections.abc import Sequence

import numpy as np

# A and B.
Pair = tuple[np.ndarray, np.ndarray]


def summed(a_KLDR: np.ndarray, b_KLRE: np.ndarray, factor_K: np.ndarray) -> Pair:
    """Factors of the sum of factor_k * A_k B_k: A [L, D, K * R] and B [L, K * R, E]."""
    factor_K111 = np.asarray(factor_K, np.float64).reshape(-1, 1, 1, 1)
    return stacked(
        [(a_LDR, b_LRE) for a_LDR, b_LRE in zip(a_KLDR, factor_K111 * b_KLRE, strict=True)]
    )


def stacked(pairs: Sequence[Pair]) -> Pair:
    """Factors of the sum of A B over pairs (A, B): [A_1 A_2 ..] and [B_1; B_2; ..]."""
    return (
        np.concatenate([a_LDR for a_LDR, _ in pairs], axis=-1, dtype=np.float64),
        np.concatenate([b_LRE for _, b_LRE in pairs], axis=-2, dtype=np.float64),
    )


def decomposed(a_LDQ: np.ndarray, b_LQE: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The singular value decomposition of A B.

    Returns:
      Left vectors [L, D, M], singular values [L, M] from the largest on, and right vectors
      [L, M, E], M the least of D, Q, E.
    """
    p_LDX, r_LXQ = np.linalg.qr(a_LDQ)
    p_LEY, r_LYQ = np.linalg.qr(np.swapaxes(b_LQE, -1, -2))
    core_LXY = r_LXQ @ np.swapaxes(r_LYQ, -1, -2)
    u_LXM, s_LM, v_LMY = np.linalg.svd(core_LXY, full_matrices=False)
    return p_LDX @ u_LXM, s_LM, v_LMY @ np.swapaxes(p_LEY, -1, -2)


def best(a_LDQ: np.ndarray, b_LQE: np.ndarray, rank: int) -> Pair:
    """The factors of this rank whose product is nearest to A B; the singular values are in B.

    Where A B has not so many singular values, the last columns of A and rows of B are 0.

    Returns:
      [L, D, R] with orthonormal columns, and [L, R, E], both float32.
    """
    u_LDM, s_LM, v_LME = decomposed(a_LDQ, b_LQE)
    missing = max(rank - s_LM.shape[-1], 0)
    none = [(0, 0)] * (u_LDM.ndim - 2)
    a_LDR = np.pad(u_LDM[..., :rank], [*none, (0, 0), (0, missing)])
    b_LRE = np.pad((s_LM[..., None] * v_LME)[..., :rank, :], [*none, (0, missing), (0, 0)])
    return a_LDR.astype(np.float32), b_LRE.astype(np.float32)


def completed(
    a_LDR: np.ndarray, b_LRE: np.ndarray, draw_LDR: np.ndarray, *, least: float = 1e-6
) -> Pair:
    """Factors as of `best`, such that the directions without a singular value can be trained.

    With a column of A and its row of B both 0 neither has a gradient. Where a row of B is below
    `least` of the first one, rounding noise at most, it becomes 0, and the column of A a direction
    orthogonal to all others, from a random draw. Beyond D columns there is none, and A stays 0.

    Args:
      a_LDR: with orthonormal columns.
      b_LRE: with the singular values, from the largest on.
      draw_LDR: random columns.
      least: of the largest singular value.
    """
    s_LR = np.linalg.norm(b_LRE.astype(np.float64), axis=-1)
    there_LR = s_LR > least * s_LR[..., :1]
    width = min(a_LDR.shape[-2:])
    mixed_LDR = np.where(there_LR[..., None, :], a_LDR, draw_LDR).astype(np.float64)
    orthonormal_LDX = np.linalg.qr(mixed_LDR[..., :width])[0]
    whole_LDR = np.zeros_like(a_LDR)
    whole_LDR[..., :width] = orthonormal_LDX
    return (
        np.where(there_LR[..., None, :], a_LDR, whole_LDR),
        np.where(there_LR[..., None], b_LRE, np.float32(0.0)),
    )
