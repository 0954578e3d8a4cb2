"""FedLEASE: clients are clustered once, each cluster has an expert, and a router mixes the experts.

Wang, Bian, Zhang, Xu: *Adaptive LoRA Experts Allocation and Selection for Federated Fine-Tuning*,
NeurIPS 2025, arXiv 2509.15087.

    Warm-up, once, all clients: each trains an adapter of its own, alone, and sends it. The server
    clusters the clients by their B (`clusters.py`) and makes M experts,
        expert_j = mean of the adapters of cluster j.
    Round t. With j = c(k) the cluster of a participant k, it
        1. receives all experts, and its cluster's router G_j,
        2. trains expert_j and G_j together, beside the other experts,
               w = softmax(x G_j) over 2 M - 1 slots, of which M lead to expert_j,
               y = x W + s * sum over the M largest of w_p * x A_e(p) B_e(p),
        3. sends both; the server takes the mean of each over the participants of cluster j.

The warm-up is in the first round, before t = 0. A cluster without a participant keeps what it has
(the paper has everybody in every round).

What was trained together: the experts and the routers; the mode experts answers with them. The
modes global (the own cluster's expert without the router), local (the client's adapter of the
warm-up), fixed and instance only combine the two at inference.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from feddpa_jax.federated.clusters import allocate, distances, means_by_cluster
from feddpa_jax.federated.experts import (
    empty_experts,
    experts_there,
    new_routers,
    routed,
    sent_to_each,
)
from feddpa_jax.federated.method import METHODS, Answers, Lora, Method, Part, Phase
from feddpa_jax.federated.server import Moment, Uploads
from feddpa_jax.types import UserError


@METHODS.register(title="FedLEASE", answers_with="experts", modes=("experts",))
def fedlease(
    lora: Lora, *, clusters: int = 0, most_clusters: int = 4, of_one: bool = False
) -> Method:
    """FedLEASE with so many `clusters`; 0: as many as the silhouette says, `most_clusters` at most.

    Paper: the M largest weights stay as they are. Reference: the authors' code divides them by
    their sum, as `of_one` does; and its clients begin the first clustered round from their own
    warm-up and fresh other experts, where the text has the clusters' means, as here.

    Raises:
      UserError: an option does not fit the number of clients.
    """
    clients, most = len(lora.names), clusters or most_clusters
    if clusters < 0 or clusters > clients:
        raise UserError(
            f"fed.options: clusters is {clusters} for {clients} clients; fedlease needs 1 to "
            f"{clients} of them, or 0 to find out"
        )
    if not clusters and (most_clusters < 2 or clients < 3):
        raise UserError(
            f"fed.options: most_clusters is {most_clusters} for {clients} clients; fedlease needs "
            "2 or more of at least 3 clients to find out, or else a number of clusters"
        )

    def cluster(sent: Uploads, server: Mapping[str, Any], moment: Moment) -> dict[str, Any]:
        del moment
        warm_K = sent.parts_K["warm"]
        of_C = allocate(distances(warm_K), count=clusters, most=most)
        experts_M = means_by_cluster(warm_K, sent.share_K, of_C, server["expert"])
        return {"expert": experts_M, "clusters": {"all": {"of": of_C}}}

    def average(sent: Uploads, server: Mapping[str, Any], moment: Moment) -> dict[str, Any]:
        of_K = np.asarray(server["clusters"]["all"]["of"])[moment.members]
        return {
            part: means_by_cluster(tree_K, sent.share_K, of_K, server[part])
            for part, tree_K in sent.parts_K.items()
        }

    return Method(
        parts={
            "expert": Part("server", lambda key: empty_experts(lora, most)),
            "router": Part("server", lambda key: new_routers(key, lora, most, of_one=of_one)),
            "clusters": Part("server", lambda key: {"all": {"of": jnp.zeros(clients, jnp.int32)}}),
            "warm": Part("client", lora.fresh),
        },
        phases=(
            Phase(
                "warm",
                train=("warm",),
                sends=("warm",),
                reduce="stack",
                server=cluster,
                when=lambda number: number == 0,
                everybody=True,
            ),
            Phase(
                "expert",
                train=("expert", "router"),
                mix=routed,
                receive=sent_to_each,
                reduce="stack",
                server=average,
            ),
        ),
        answers=_answers,
    )


def _answers(server: Mapping[str, Any], own_C: Mapping[str, Any], members: np.ndarray) -> Answers:
    received = sent_to_each(server, own_C, members)
    (term,) = routed(received)
    others = {"experts": term.bank}
    return Answers(received["expert"], own_C["warm"], others, experts_there(server))
