"""Federated LoRA methods that differ in the server's aggregation, in PyTorch: oracles of the tests.

Clients train one after the other with the loop of `reference_loop`; the server's steps are numpy in
float64, written as the papers have them, with y = x W + s x A B and s = alpha / rank, so a paper's
B A is A B here. p_i are the participants' shares.

    FFA-LoRA   2403.12313   A stays as it began;  B = sum p_i B_i
    FedSA-LoRA 2410.01463   A = sum p_i A_i;  each client keeps its own B_i
    RoLoRA     2502.01755   rounds 1, 3, ..: B = sum p_i B_i;  rounds 2, 4, ..: A = sum p_i A_i
    FlexLoRA   2402.11505   W = sum p_i s_i A_i B_i = U S V;  client c: A = U_r, B = S_r V_r / s_c
    FedEx-LoRA 2410.09432   A, B = means;  W <- W + s (sum p_i A_i B_i - A B)
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from transformers import LlamaForCausalLM

from tests.parity.reference_loop import Adapter, DualLlama, MicroBatch, Update, train

Dense = dict[str, np.ndarray]
Rounds = Sequence[Mapping[int, Sequence[Update]]]
ServerStep = Callable[[Adapter, Adapter, str], Adapter]


@dataclasses.dataclass(frozen=True)
class Setting:
    """What the methods have in common.

    Attributes:
      model: the base; it is not changed.
      alpha: LoRA's alpha.
      learning_rate: of the first update of each local training, in a round of rate 1.
      examples: each client's number of examples, for shares by number; None for equal shares.
      rate: the factor of the learning rate in each round.
      proximal: FedProx's mu.
    """

    model: LlamaForCausalLM
    alpha: float
    learning_rate: float
    examples: Sequence[int] | None = None
    rate: Callable[[int], float] = lambda number: 1.0
    proximal: float = 0.0

    def shares(self, clients: Sequence[int]) -> np.ndarray:
        """The participants' shares, adding up to 1."""
        counts = np.array([1.0 if self.examples is None else self.examples[c] for c in clients])
        return counts / counts.sum()


@dataclasses.dataclass(frozen=True)
class Trace:
    """What a federated training leaves behind, round by round.

    Attributes:
      losses: `losses[round][client]`, the loss of every update before it is made, without penalty.
      uploads: `uploads[round][client]`, the factors after the client's training.
      server: `server[round]`, the common factors after the round (FlexLoRA: none).
      clients: `clients[round][client]`, the factors that a client answers with after the round;
        only of methods in which they are the client's own.
      dense: `dense[round][target]`, [L, D, E]: what the server adds to the base besides the
        factors (FedEx-LoRA), or instead of them (FlexLoRA).
    """

    losses: list[dict[int, list[float]]] = dataclasses.field(default_factory=list)
    uploads: list[dict[int, Adapter]] = dataclasses.field(default_factory=list)
    server: list[Adapter] = dataclasses.field(default_factory=list)
    clients: list[list[Adapter]] = dataclasses.field(default_factory=list)
    dense: list[Dense] = dataclasses.field(default_factory=list)


class LoraLlama(DualLlama):
    """A Llama under one adapter, of which some leaves train, near where they began or not."""

    proximal = 0.0

    def receive(self, start: Adapter, leaves: str) -> None:
        """Begins a local training of the leaves "a", "b" or "ab" alone."""
        self.load("global", start)
        self.start("global", global_weight=1.0, local_weight=0.0)
        self.trained = []
        for pair in (dual.global_ for maps in self.maps.values() for dual in maps):
            for name, factor in pair.named_parameters():
                factor.requires_grad_(name in leaves)
            self.trained += [factor for factor in pair.parameters() if factor.requires_grad]
        self.received = [factor.detach().clone() for factor in self.trained]

    def train_leaves(
        self, start: Adapter, leaves: str, updates: Sequence[Update], rate: float
    ) -> tuple[Adapter, list[float]]:
        """One local training.

        Returns:
          The factors after it, and the loss of each update.
        """
        self.receive(start, leaves)
        losses = train(self, self.trained, updates, rate)
        return self.adapter("global"), losses

    def loss(self, micro_batch: MicroBatch) -> torch.Tensor:
        """The micro-batch's loss; mu / 2 |w - w_received|^2 enters its gradient, not its value."""
        loss = super().loss(micro_batch)
        if self.proximal == 0.0:
            return loss
        gaps = zip(self.trained, self.received, strict=True)
        squares = torch.stack([((now - then) ** 2).sum() for now, then in gaps])
        penalty = 0.5 * self.proximal * squares.sum()
        return loss + penalty - penalty.detach()

    def add_to_base(self, dense: Dense) -> None:
        """Adds [L, D, E] to the frozen maps."""
        with torch.no_grad():
            for target, maps in self.maps.items():
                for dual, added_DE in zip(maps, dense[target], strict=True):
                    weight_ED = dual.linear.weight
                    weight_ED += torch.from_numpy(added_DE.T.copy()).to(weight_ED.dtype)


def llama_for(setting: Setting, like: Adapter) -> LoraLlama:
    """The base under an adapter of this adapter's targets and rank."""
    llama = LoraLlama(setting.model, like, setting.alpha)
    llama.proximal = setting.proximal
    return llama


def scale_of(setting: Setting, adapter: Adapter) -> float:
    """alpha / rank."""
    return setting.alpha / next(iter(adapter.values()))["a"].shape[-1]


def mean(adapters: Sequence[Adapter], shares: np.ndarray) -> Adapter:
    """The shares' mean of every leaf."""
    return {
        target: {
            leaf: np.tensordot(shares, np.stack([each[target][leaf] for each in adapters]), 1)
            for leaf in "ab"
        }
        for target in adapters[0]
    }


def product(adapter: Adapter) -> Dense:
    """A B of every map, [L, D, E], without the scale."""
    return {
        target: np.asarray(pair["a"], np.float64) @ np.asarray(pair["b"], np.float64)
        for target, pair in adapter.items()
    }


def mean_product(adapters: Sequence[Adapter], factors: np.ndarray) -> Dense:
    """The sum of the products A B, each times its factor, [L, D, E]."""
    dense = [product(adapter) for adapter in adapters]
    return {
        target: np.tensordot(factors, np.stack([each[target] for each in dense]), 1)
        for target in dense[0]
    }


def like(adapter: Adapter, before: Adapter) -> Adapter:
    """The adapter in the number type of another one."""
    return {
        target: {leaf: pair[leaf].astype(before[target][leaf].dtype) for leaf in "ab"}
        for target, pair in adapter.items()
    }


def plain(before: Adapter, mean: Adapter, leaves: str) -> Adapter:
    """The server's step of FedAvg: the mean."""
    return mean


def run_shared(
    setting: Setting,
    start: Adapter,
    rounds: Rounds,
    leaves: Callable[[int], str] = lambda number: "ab",
    server: ServerStep = plain,
) -> Trace:
    """Rounds that train and send the same leaves of one common adapter; FedAvg of A and of B.

    Args:
      setting: see there.
      start: the common adapter before the first round.
      rounds: `rounds[round][client]`, the updates of every participant.
      leaves: the leaves that train in a round, from 0: "a", "b" or "ab".
      server: from the common adapter, the uploads' mean and the leaves sent to the new adapter.
    """
    llama, trace, common = llama_for(setting, start), Trace(), start
    for number, work in enumerate(rounds):
        sent = leaves(number)
        rate = setting.learning_rate * setting.rate(number)
        done = {c: llama.train_leaves(common, sent, work[c], rate) for c in work}
        uploads = {client: adapter for client, (adapter, _) in done.items()}
        stepped = server(common, mean(list(uploads.values()), setting.shares(list(work))), sent)
        common = like(
            {
                target: {leaf: (stepped if leaf in sent else common)[target][leaf] for leaf in "ab"}
                for target in common
            },
            start,
        )
        trace.losses.append({client: losses for client, (_, losses) in done.items()})
        trace.uploads.append(uploads)
        trace.server.append(common)
    return trace


def run_ffa_lora(setting: Setting, start: Adapter, rounds: Rounds) -> Trace:
    """FFA-LoRA: A is frozen as it began; B trains, is sent and averaged."""
    return run_shared(setting, start, rounds, lambda number: "b")


def run_rolora(setting: Setting, start: Adapter, rounds: Rounds) -> Trace:
    """RoLoRA: B in the first, third, .. round, with A frozen; A in the second, fourth, .."""
    return run_shared(setting, start, rounds, lambda number: "ba"[number % 2])


def run_fedsa_lora(
    setting: Setting,
    start: Adapter,
    own: Sequence[Adapter],
    rounds: Rounds,
    shared: str = "a",
) -> Trace:
    """FedSA-LoRA: both leaves train; one is sent and averaged, the other stays with the client.

    Args:
      setting: see there.
      start: has the first shared leaf.
      own: have the clients' first own leaves.
      rounds: `rounds[round][client]`, the updates of every participant.
      shared: the leaf that is sent; "b" is the reverse of the paper's method.
    """
    llama, trace, common, held = llama_for(setting, start), Trace(), start, list(own)

    def joined(client: int) -> Adapter:
        return {
            target: {
                leaf: (common if leaf in shared else held[client])[target][leaf] for leaf in "ab"
            }
            for target in common
        }

    for number, work in enumerate(rounds):
        rate = setting.learning_rate * setting.rate(number)
        done = {c: llama.train_leaves(joined(c), "ab", work[c], rate) for c in work}
        uploads = {client: adapter for client, (adapter, _) in done.items()}
        for client, adapter in uploads.items():
            held[client] = adapter
        common = like(mean(list(uploads.values()), setting.shares(list(work))), start)
        trace.losses.append({client: losses for client, (_, losses) in done.items()})
        trace.uploads.append(uploads)
        trace.server.append(common)
        trace.clients.append([joined(client) for client in range(len(held))])
    return trace


def truncated(dense: Dense, rank: int, scale: float) -> Adapter:
    """The factors of this rank whose product, times the scale, is nearest to a dense update.

    A has orthonormal columns; the singular values are in B, as in the authors' code.
    """
    adapter = {}
    for target, dense_LDE in dense.items():
        u_LDK, s_LK, v_LKE = np.linalg.svd(dense_LDE.astype(np.float64), full_matrices=False)
        b_LRE = s_LK[:, :rank, None] * v_LKE[:, :rank] / scale
        adapter[target] = {"a": u_LDK[..., :rank], "b": b_LRE}
    return adapter


def run_flexlora(setting: Setting, start: Sequence[Adapter], rounds: Rounds) -> Trace:
    """FlexLoRA: each client has a rank of its own; the server averages the scaled products.

    Args:
      setting: see there.
      start: each client's first adapter; its rank is the client's.
      rounds: `rounds[round][client]`, the updates of every participant.
    """
    scales = [scale_of(setting, adapter) for adapter in start]
    llamas = [llama_for(setting, adapter) for adapter in start]
    trace, held = Trace(), list(start)
    for number, work in enumerate(rounds):
        rate = setting.learning_rate * setting.rate(number)
        done = {c: llamas[c].train_leaves(held[c], "ab", work[c], rate) for c in work}
        uploads = {client: adapter for client, (adapter, _) in done.items()}
        factors = setting.shares(list(work)) * [scales[client] for client in work]
        dense = mean_product(list(uploads.values()), factors)
        held = [
            like(truncated(dense, first[next(iter(first))]["a"].shape[-1], scale), first)
            for first, scale in zip(start, scales, strict=True)
        ]
        trace.losses.append({client: losses for client, (_, losses) in done.items()})
        trace.uploads.append(uploads)
        trace.clients.append(held)
        trace.dense.append(dense)
    return trace


def run_fedex_lora(setting: Setting, start: Adapter, rounds: Rounds) -> Trace:
    """FedEx-LoRA: the means of A and of B; what they miss of the products goes into the base."""
    llama, scale = llama_for(setting, start), scale_of(setting, start)
    trace, common = Trace(), start
    total = {target: np.zeros_like(dense) for target, dense in product(start).items()}
    for number, work in enumerate(rounds):
        rate = setting.learning_rate * setting.rate(number)
        done = {c: llama.train_leaves(common, "ab", work[c], rate) for c in work}
        uploads = {client: adapter for client, (adapter, _) in done.items()}
        shares = setting.shares(list(work))
        means = mean(list(uploads.values()), shares)
        ideal, kept = mean_product(list(uploads.values()), shares), product(means)
        residual = {target: scale * (ideal[target] - kept[target]) for target in ideal}
        llama.add_to_base(residual)
        total = {target: total[target] + residual[target] for target in total}
        common = like(means, start)
        trace.losses.append({client: losses for client, (_, losses) in done.items()})
        trace.uploads.append(uploads)
        trace.server.append(common)
        trace.dense.append(total)
    return trace
