"""Rules that compare an instance's embedding with those of the client's own training prompts."""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from feddpa_jax.weighting.rule import RULES


def _cosines(query_BD: jax.Array, support_BMD: jax.Array) -> jax.Array:
    B, D = query_BD.shape
    chex.assert_shape(support_BMD, (B, None, D))
    query_BD = query_BD / jnp.maximum(jnp.linalg.norm(query_BD, axis=-1, keepdims=True), 1e-12)
    norm_BM1 = jnp.maximum(jnp.linalg.norm(support_BMD, axis=-1, keepdims=True), 1e-12)
    return jnp.einsum("BD,BMD->BM", query_BD, support_BMD / norm_BM1)


@RULES.register
def cosine(query_BD: Float[Array, "B D"], support_BMD: Float[Array, "B M D"]) -> Float[Array, "B"]:
    """The paper's rule: mean cosine between the instance and the support, in [-1, 1].

    >>> import jax.numpy as jnp
    >>> cosine(jnp.array([[1.0, 0.0]]), jnp.array([[[2.0, 0.0], [0.0, 3.0]]])).tolist()
    [0.5]
    """
    return _cosines(query_BD, support_BMD).mean(axis=-1)


@RULES.register
def pearson(query_BD: Float[Array, "B D"], support_BMD: Float[Array, "B M D"]) -> Float[Array, "B"]:
    """Mean Pearson correlation: the cosine after each embedding's own mean is taken off.

    The paper's ablation (arXiv 2403.19211, section 4).
    """
    return cosine(
        query_BD - query_BD.mean(axis=-1, keepdims=True),
        support_BMD - support_BMD.mean(axis=-1, keepdims=True),
    )


@RULES.register
def l2(query_BD: Float[Array, "B D"], support_BMD: Float[Array, "B M D"]) -> Float[Array, "B"]:
    """Mean of 1 / (1 + d) with d the root-mean-square difference over features, in (0, 1].

    The paper's ablation names an L2 similarity without its formula; dividing by the number of
    features keeps its range independent of the model's width.
    """
    difference_BMD = support_BMD - query_BD[:, None, :]
    distance_BM = jnp.sqrt(jnp.mean(jnp.square(difference_BMD), axis=-1))
    return (1.0 / (1.0 + distance_BM)).mean(axis=-1)


@RULES.register
def constant(query_BD: Float[Array, "B D"]) -> Float[Array, "B"]:
    """Similarity 1 for everything: a fixed mix at weight `scale`, what every rule has to beat."""
    return jnp.ones(query_BD.shape[0], jnp.float32)


@RULES.register
def nearest(query_BD: Float[Array, "B D"], support_BMD: Float[Array, "B M D"]) -> Float[Array, "B"]:
    """Cosine with the nearest support example.

    k nearest neighbours with k = 1 (Cover and Hart, *Nearest Neighbor Pattern Classification*,
    1967).
    """
    return _cosines(query_BD, support_BMD).max(axis=-1)


@RULES.register
def nearest_3(
    query_BD: Float[Array, "B D"], support_BMD: Float[Array, "B M D"]
) -> Float[Array, "B"]:
    """Mean cosine with the three nearest support examples."""
    cosine_BM = _cosines(query_BD, support_BMD)
    return jax.lax.top_k(cosine_BM, min(3, cosine_BM.shape[-1]))[0].mean(axis=-1)


@RULES.register
def centred(
    query_BD: Float[Array, "B D"],
    support_BMD: Float[Array, "B M D"],
    dream_ND: Float[Array, "N D"],
) -> Float[Array, "B"]:
    """Mean cosine after subtracting the mean embedding of the base prompts.

    Sentence embeddings share a large common part, and only what is beside it tells them apart
    (Mu and Viswanath, arXiv 1702.01417); here that part is what any prompt in the template has.
    """
    centre_D = dream_ND.mean(axis=0)
    return cosine(query_BD - centre_D[None], support_BMD - centre_D[None, None])


@RULES.register
def whitened(
    query_BD: Float[Array, "B D"],
    support_BMD: Float[Array, "B M D"],
    dream_ND: Float[Array, "N D"],
) -> Float[Array, "B"]:
    """Mean cosine after centring and whitening by base prompts (Su et al., arXiv 2103.15316).

    There are fewer prompts than features, so the covariance C is shrunk half-way to a multiple of
    the identity; (C/2 + c/2)^(-1/2) scales the N directions of the prompts and leaves the rest.
    """
    centre_D = dream_ND.mean(axis=0)
    centred_ND = dream_ND - centre_D[None]
    _, singular_N, axes_ND = jnp.linalg.svd(centred_ND, full_matrices=False)
    variance_N = jnp.square(singular_N) / dream_ND.shape[0]
    typical = jnp.maximum(variance_N.mean(), 1e-12)
    shrink_N = jnp.sqrt(1.0 / (1.0 + variance_N / typical)) - 1.0

    def whiten(x_XD: jax.Array) -> jax.Array:
        x_XD = x_XD - centre_D
        return x_XD + jnp.einsum("...N,N,ND->...D", x_XD @ axes_ND.T, shrink_N, axes_ND)

    with jax.numpy_rank_promotion("allow"):
        return cosine(whiten(query_BD), whiten(support_BMD))


@RULES.register
def layerwise(
    query_BLD: Float[Array, "B L D"], support_MLD: Float[Array, "M L D"]
) -> Float[Array, "B L"]:
    """The paper's rule in every layer on its own: what enters the layer sets its weight.

    An adapter of an upper layer may suit an instance whose lower ones do not (the layer-wise
    weights of AdaMerging, Yang et al., arXiv 2310.02575, here for each instance). What enters the
    first layer at the last prompt token is that token's embedding, the same for all prompts of a
    template: with `weighting.pooling: last` that layer's similarity is 1.
    """
    by_layer = jax.vmap(
        lambda query_BD, support_MD: cosine(
            query_BD, jnp.broadcast_to(support_MD, (query_BD.shape[0], *support_MD.shape))
        ),
        in_axes=(1, 1),
        out_axes=1,
    )
    return by_layer(query_BLD, support_MLD)


@RULES.register
def mahalanobis(
    query_BD: Float[Array, "B D"], support_MD: Float[Array, "M D"]
) -> Float[Array, "B"]:
    """exp(-d), d the mean over features of the squared deviation over the support's variance.

    In (0, 1]; Lee et al., arXiv 1807.03888, with one Gaussian and a diagonal covariance. Each
    feature's variance is shrunk half-way to their mean, since M may be a handful.
    """
    variance_D = support_MD.var(axis=0)
    variance_D = 0.5 * (variance_D + jnp.maximum(variance_D.mean(), 1e-12))
    deviation_BD = jnp.square(query_BD - support_MD.mean(axis=0)[None]) / variance_D[None]
    return jnp.exp(-deviation_BD.mean(axis=-1))
