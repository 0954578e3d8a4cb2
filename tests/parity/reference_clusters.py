"""FedLEASE in PyTorch, from its paper: clustered experts and an adaptive router.

Wang, Bian, Zhang, Xu, *Adaptive LoRA Experts Allocation and Selection for Federated Fine-Tuning*,
arXiv 2509.15087.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from transformers import LlamaForCausalLM

from tests.parity.reference_loop import Update
from tests.parity.reference_mix import Leaves, MixedLlama, Part, Rule, alone, average
from tests.parity.reference_personal import Result, Rounds

Clusters = list[list[int]]


def distances(warm: Sequence[Part]) -> np.ndarray:
    """The mean over adapted maps of 1 - cos(B_i, B_j), [C, C]."""
    count = len(warm)
    found = np.zeros((count, count))
    for i, j in itertools.product(range(count), repeat=2):
        apart = []
        for target in warm[i]:
            pairs = zip(warm[i][target]["b"], warm[j][target]["b"], strict=True)
            for one, other in pairs:
                u, v = one.ravel().astype(np.float64), other.ravel().astype(np.float64)
                apart.append(1 - u @ v / (np.linalg.norm(u) * np.linalg.norm(v)))
        found[i, j] = np.mean(apart)
    return found


def clusters_of(distance_CC: np.ndarray, count: int) -> Clusters:
    """Merges the two clusters with the least mean distance until so many are left.

    Clusters come in the order of their first members.
    """
    groups = [[client] for client in range(len(distance_CC))]
    while len(groups) > count:
        first, second = min(
            itertools.combinations(range(len(groups)), 2),
            key=lambda pair: distance_CC[np.ix_(groups[pair[0]], groups[pair[1]])].mean(),
        )
        groups[first] = sorted(groups[first] + groups.pop(second))
    return sorted(groups)


def silhouette(distance_CC: np.ndarray, clusters: Clusters) -> float:
    """The mean over clients of (b - a) / max(a, b); 0 for a client alone in its cluster.

    a is the mean distance to the others of its own cluster, b the least mean distance to the
    clients of another cluster.
    """
    scores = []
    for group in clusters:
        for client in group:
            mates = [mate for mate in group if mate != client]
            if not mates:
                scores.append(0.0)
                continue
            a = distance_CC[client, mates].mean()
            b = min(distance_CC[client, other].mean() for other in clusters if other is not group)
            scores.append((b - a) / max(a, b))
    return float(np.mean(scores))


def allocate(distance_CC: np.ndarray, largest: int) -> Clusters:
    """The clusters, 2 to `largest` of them, with the greatest silhouette; the fewest if tied."""
    candidates = [
        clusters_of(distance_CC, count)
        for count in range(2, min(largest, len(distance_CC) - 1) + 1)
    ]
    return max(candidates, key=lambda clusters: silhouette(distance_CC, clusters))


def expert(number: int) -> str:
    """The name of an expert's part."""
    return f"expert_{number}"


def slots(own: int, experts: int) -> list[int]:
    """The expert of each of the router's 2 M - 1 outputs: M times the own one, then the others."""
    return [own] * experts + [other for other in range(experts) if other != own]


def top_slots(own: int, experts: int, *, renormalized: bool) -> Rule:
    """The router's rule: of softmax(x G), the M largest outputs, added up by expert.

    Args:
      own: the client's own expert, to which M of the 2 M - 1 outputs lead.
      experts: M.
      renormalized: the M weights are divided by their sum, as in the authors' code; in the paper
        they are not.
    """
    of_slot = torch.tensor(slots(own, experts))

    def rule(x_BTD: torch.Tensor, leaves: Leaves) -> dict[str, torch.Tensor]:
        weight_BTK = torch.softmax(x_BTD @ leaves["router"]["gate"], dim=-1)
        top_BTM, slot_BTM = torch.topk(weight_BTK, experts, dim=-1)
        if renormalized:
            top_BTM = top_BTM / top_BTM.sum(-1, keepdim=True)
        expert_BTM = of_slot[slot_BTM]
        return {
            expert(number): (top_BTM * (expert_BTM == number)).sum(-1, keepdim=True)
            for number in range(experts)
        }

    return rule


@dataclasses.dataclass(frozen=True)
class FedleaseResult:
    """What FedLEASE leaves behind.

    Attributes:
      warm_losses: `[client]`, of the warm-up.
      warm: each client's adapter after it.
      distance_CC: between clients.
      clusters: the clients of each expert.
      experts: the experts before the first round.
      rounds: the server's parts are "expert_0", ... and "router_0", ..., one of each a cluster;
        the only phase is "expert".
    """

    warm_losses: list[list[float]]
    warm: list[Part]
    distance_CC: np.ndarray
    clusters: Clusters
    experts: list[Part]
    rounds: Result


def run_fedlease(
    model: LlamaForCausalLM,
    fresh: Sequence[Part],
    warm_updates: Sequence[Sequence[Update]],
    routers: Mapping[int, Sequence[Part]],
    batches: Rounds,
    *,
    alpha: float,
    learning_rate: float,
    largest: int,
    count: int | None = None,
    renormalized: bool = False,
) -> FedleaseResult:
    """FedLEASE: a warm-up alone, clusters by the B's, then experts and routers by cluster.

    y = x W + s * sum over the M largest of softmax(x G) of w_p * x A_e(p) B_e(p). A client trains
    its cluster's expert and router beside the other experts, which are frozen; the server takes the
    mean of both over the cluster's participants. A cluster without any keeps what it has.

    Args:
      model: the base; it is not changed.
      fresh: each client's first adapter of the warm-up.
      warm_updates: `[client]`, of the warm-up; everybody takes part.
      routers: by number of experts M, each cluster's first router, {target: {"gate": [L, in,
        2 M - 1]}}, own expert first.
      batches: by round and participant, the updates of the phase "expert".
      alpha: LoRA's alpha.
      learning_rate: of the first update of each local training.
      largest: the most experts.
      count: so many experts, whatever the silhouette says.
      renormalized: as of `top_slots`.
    """
    llama = MixedLlama(model, list(fresh[0]), alpha)
    stage = [
        llama.train({"warm": part}, alone("warm"), ["warm"], updates, learning_rate)
        for part, updates in zip(fresh, warm_updates, strict=True)
    ]
    warm = [each.parts["warm"] for each in stage]
    distance_CC = distances(warm)
    clusters = clusters_of(distance_CC, count) if count else allocate(distance_CC, largest)
    experts = [average([warm[client] for client in group]) for group in clusters]
    first, router = list(experts), list(routers[len(clusters)])
    own = {client: number for number, group in enumerate(clusters) for client in group}
    result = Result([], [], [], [])
    for participants in batches:
        losses, trained = {}, {}
        for client, phases in participants.items():
            number = own[client]
            parts = {expert(e): part for e, part in enumerate(experts)}
            done = llama.train(
                {**parts, "router": router[number]},
                top_slots(number, len(experts), renormalized=renormalized),
                [expert(number), "router"],
                phases["expert"],
                learning_rate,
            )
            trained[client] = (done.parts[expert(number)], done.parts["router"])
            losses[client] = {"expert": done.losses}
        for number, group in enumerate(clusters):
            present = [trained[client] for client in group if client in trained]
            if present:
                experts[number] = average([part for part, _ in present])
                router[number] = average([part for _, part in present])
        result.losses.append(losses)
        result.server.append(
            {expert(e): part for e, part in enumerate(experts)}
            | {f"router_{e}": part for e, part in enumerate(router)}
        )
        result.clients.append([{} for _ in fresh])
    return FedleaseResult(
        [each.losses for each in stage], warm, distance_CC, clusters, first, result
    )
