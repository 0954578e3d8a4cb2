"""Clusters' experts and routers: the server's banks, and what a client receives of them.

The server holds banks [M, ...] of the most experts that there may be; those beyond the clusters
found are zero, and their slots in the routers are not there (`router.py`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from feddpa_jax.adapters.mix import Parts, Term, side_by_side
from feddpa_jax.adapters.router import NO_SLOT
from feddpa_jax.federated.method import Lora


def empty_experts(lora: Lora, count: int) -> Any:
    """Adapters of zeros, {target: {leaf: [M, L, ...]}}."""
    one = jax.eval_shape(lora.fresh, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape), leaf.dtype), one)


def new_routers(key: jax.Array, lora: Lora, count: int, *, of_one: bool) -> Any:
    """Each cluster's router, uniform within ±1/sqrt(in), {target: {kind: [M, L, in, 2 M - 1]}}."""
    keys = jax.random.split(key, len(lora.sizes))
    return {
        target: {
            "top_of_one" if of_one else "top": jax.random.uniform(
                target_key,
                (count, lora.layers, size, 2 * count - 1),
                minval=-(size**-0.5),
                maxval=size**-0.5,
            )
        }
        for target_key, (target, (size, _)) in zip(keys, lora.sizes.items(), strict=True)
    }


def sent_to_each(server: Mapping[str, Any], own_C: Mapping[str, Any], members: np.ndarray) -> Any:
    """What each of some clients receives: its cluster's expert and router, and the other experts.

    Returns:
      "expert" {target: {leaf: [C, L, ...]}}, "router" likewise; "others", side by side in their
      order, of the rank (M - 1) R, if there are any; and "count", how many experts there are.
    """
    del own_C
    of_C = jnp.asarray(server["clusters"]["all"]["of"])
    cluster_C = of_C[jnp.asarray(members)]
    found: dict[str, Any] = {
        part: jax.tree.map(lambda leaf_M: jnp.asarray(leaf_M)[cluster_C], server[part])
        for part in ("expert", "router")
    }
    experts = len(jax.tree.leaves(server["expert"])[0])
    if experts > 1:
        place_N = jnp.arange(experts - 1)
        other_CN = place_N[None] + (place_N[None] >= cluster_C[:, None])
        others = [
            jax.tree.map(lambda leaf_M, n=n: jnp.asarray(leaf_M)[other_CN[:, n]], server["expert"])
            for n in range(experts - 1)
        ]
        found["others"] = side_by_side(others)
    count_C = jnp.full(cluster_C.shape, of_C.max() + 1, jnp.float32)
    return {**found, "count": {"all": {"experts": count_C}}}


def experts_there(server: Mapping[str, Any]) -> tuple[Any, ...]:
    """The expert of every cluster that was found, in their order, {target: {leaf: [1, L, ...]}}."""
    count = int(np.asarray(server["clusters"]["all"]["of"]).max()) + 1
    return tuple(
        jax.tree.map(lambda leaf_M, at=at: jnp.asarray(leaf_M)[at : at + 1], server["expert"])
        for at in range(count)
    )


def routed(parts: Parts) -> Sequence[Term]:
    """The mix of what `sent_to_each` gives: one adapter, the own expert first, with its router."""
    experts = [parts["expert"], *([parts["others"]] if "others" in parts else [])]
    first = next(iter(parts["router"].values()))
    (router_CLDS,) = first.values()
    _, layers, _, slots = router_CLDS.shape
    most = (slots + 1) // 2
    count_C1 = parts["count"]["all"]["experts"][:, None]
    place_S = np.arange(slots)
    place_1S = np.where(place_S < most, place_S, place_S - most + 1)[None]
    # M of the first slots are there, and M - 1 of the others.
    bias_CS = jnp.where(place_1S < count_C1, 0.0, NO_SLOT)
    bias_CLS = jnp.repeat(bias_CS[:, None], layers, axis=1)
    gates = {target: {**leaves, "bias": bias_CLS} for target, leaves in parts["router"].items()}
    return [Term(side_by_side(experts, gates))]
