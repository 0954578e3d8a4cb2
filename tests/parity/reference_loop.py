"""The client loop of FedDPA-T and FedDPA-F in PyTorch: the oracle of the parity tests.

Yang, Long, Shen, Jiang, Blumenstein, *Dual-Personalizing Adapter for Federated Foundation Models*,
arXiv 2403.19211. Clients train one after the other, on `transformers`' Llama, with

    y = x W + alpha / rank * ( g * x A_global B_global  +  l * x A_local B_local )

in place of every adapted linear map. Numpy goes in and numpy comes out. There is no dropout: two
libraries cannot draw the same masks.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import nn
from transformers import LlamaForCausalLM

Adapter = dict[str, dict[str, np.ndarray]]
MicroBatch = Sequence[tuple[np.ndarray, int]]
Update = Sequence[MicroBatch]
Phases = Mapping[str, Sequence[Update]]
Side = Literal["global", "local"]

BLOCKS = {
    "q_proj": "self_attn",
    "k_proj": "self_attn",
    "v_proj": "self_attn",
    "o_proj": "self_attn",
    "gate_proj": "mlp",
    "up_proj": "mlp",
    "down_proj": "mlp",
}
MAX_GRADIENT_NORM = 1.0


@dataclasses.dataclass(frozen=True)
class OracleResult:
    """What a federated training leaves behind.

    Attributes:
      losses: `losses[round][client][phase]`, the loss of every update before it is made.
      global_: the global adapter after the last round.
      locals_: each client's local adapter.
      global_by_round: the global adapter after each round.
      personalization_losses: FedDPA-F, `[client]`, the loss of every update of the last training.
    """

    losses: list[list[dict[str, list[float]]]]
    global_: Adapter
    locals_: list[Adapter]
    global_by_round: list[Adapter]
    personalization_losses: list[list[float]] = dataclasses.field(default_factory=list)


class Pair(nn.Module):
    """The two factors of one adapter on one linear map; zero until they are loaded."""

    def __init__(self, size_in: int, size_out: int, rank: int, dtype: torch.dtype):
        """Args: D, E, R and the dtype of the factors."""
        super().__init__()
        self.a = nn.Parameter(torch.zeros(size_in, rank, dtype=dtype))
        self.b = nn.Parameter(torch.zeros(rank, size_out, dtype=dtype))

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Returns x A B."""
        return x_BTD @ self.a @ self.b


class DualLoraLinear(nn.Module):
    """A frozen linear map under the global and the local adapter.

    Attributes:
      global_weight: g.
      local_weight: l.
      detach_global: no gradient flows through the output of the global branch.
    """

    def __init__(self, linear: nn.Linear, rank: int, scale: float):
        """Args: the frozen map, R, and the LoRA scale alpha / R."""
        super().__init__()
        sizes = (linear.in_features, linear.out_features, rank, linear.weight.dtype)
        self.linear = linear
        self.global_ = Pair(*sizes)
        self.local_ = Pair(*sizes)
        self.scale = scale
        self.global_weight, self.local_weight, self.detach_global = 1.0, 0.0, False

    def pair(self, side: Side) -> Pair:
        """The factors of one side."""
        return self.global_ if side == "global" else self.local_

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """The mixed output."""
        global_BTE = self.global_(x_BTD)
        if self.detach_global:
            global_BTE = global_BTE.detach()
        mixed_BTE = self.global_weight * global_BTE + self.local_weight * self.local_(x_BTD)
        return self.linear(x_BTD) + self.scale * mixed_BTE


class DualLlama:
    """A frozen copy of a Llama with a `DualLoraLinear` at every target of every layer."""

    def __init__(self, model: LlamaForCausalLM, like: Adapter, alpha: float):
        """Args: the base (left as it is), an adapter with the targets and rank, LoRA's alpha."""
        self.model = copy.deepcopy(model).requires_grad_(False).train()
        self.maps: dict[str, list[DualLoraLinear]] = {}
        for target, factors in like.items():
            layers, _, rank = factors["a"].shape
            assert layers == model.config.num_hidden_layers, f"{target}: {layers} layers"
            self.maps[target] = []
            for layer in range(layers):
                path = f"model.layers.{layer}.{BLOCKS[target]}.{target}"
                linear = self.model.get_submodule(path)
                assert isinstance(linear, nn.Linear), path
                dual = DualLoraLinear(linear, rank, alpha / rank)
                self.model.set_submodule(path, dual)
                self.maps[target].append(dual)

    def load(self, side: Side, adapter: Adapter) -> None:
        """Copies an adapter into one side."""
        assert adapter.keys() == self.maps.keys(), f"{side} adapter has other targets"
        with torch.no_grad():
            for target, maps in self.maps.items():
                for layer, dual in enumerate(maps):
                    for name, parameter in dual.pair(side).named_parameters():
                        parameter.copy_(torch.from_numpy(np.array(adapter[target][name][layer])))

    def adapter(self, side: Side, *, gradient: bool = False) -> Adapter:
        """A copy of one side's factors, or of their gradients, stacked over layers."""

        def stacked(maps: list[DualLoraLinear], name: str) -> np.ndarray:
            factors = [dual.pair(side).get_parameter(name) for dual in maps]
            tensors = [factor.grad if gradient else factor.detach() for factor in factors]
            return np.stack([tensor.numpy().copy() for tensor in tensors if tensor is not None])

        return {t: {name: stacked(maps, name) for name in "ab"} for t, maps in self.maps.items()}

    def start(
        self, side: Side, *, global_weight: float, local_weight: float, detach_global: bool = False
    ) -> list[nn.Parameter]:
        """Sets the mix and trains one side alone; returns its parameters, gradients cleared."""
        trained = []
        for dual in (dual for maps in self.maps.values() for dual in maps):
            dual.global_weight, dual.local_weight = global_weight, local_weight
            dual.detach_global = detach_global
            dual.requires_grad_(False).zero_grad()
            trained += list(dual.pair(side).requires_grad_(True).parameters())
        return trained

    def loss(self, micro_batch: MicroBatch) -> torch.Tensor:
        """The mean negative log-likelihood over all response tokens of a micro-batch."""
        length = max(len(tokens) for tokens, _ in micro_batch)
        tokens_BT = torch.zeros(len(micro_batch), length, dtype=torch.int64)
        real_BT = torch.zeros_like(tokens_BT)
        response_BT = torch.zeros_like(tokens_BT, dtype=torch.bool)
        for row, (tokens, prompt_length) in enumerate(micro_batch):
            tokens_BT[row, : len(tokens)] = torch.from_numpy(np.array(tokens))
            real_BT[row, : len(tokens)] = 1
            response_BT[row, max(prompt_length, 1) : len(tokens)] = True
        assert response_BT.any(), "a micro-batch without response tokens has no loss"
        logits_BTV = self.model(input_ids=tokens_BT, attention_mask=real_BT, use_cache=False).logits
        target_P = tokens_BT[response_BT]
        logits_PV = logits_BTV[:, :-1][response_BT[:, 1:]]
        return nn.functional.cross_entropy(logits_PV, target_P)


def linear_decay(updates: int) -> Callable[[int], float]:
    """The learning rate's factor at each update, from 1 at the first to 1 / U at the last."""
    return lambda update: (updates - update) / updates


def train(
    dual: DualLlama, trained: list[nn.Parameter], updates: Sequence[Update], learning_rate: float
) -> list[float]:
    """One local training, with an optimizer and a schedule of its own.

    Returns:
      The loss of each update: the mean over its micro-batches of their means.
    """
    optimizer = torch.optim.AdamW(
        trained, lr=learning_rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, linear_decay(len(updates)))
    losses = []
    for update in updates:
        optimizer.zero_grad()
        total = 0.0
        for micro_batch in update:
            loss = dual.loss(micro_batch) / len(update)
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(trained, MAX_GRADIENT_NORM)
        optimizer.step()
        schedule.step()
        losses.append(total)
    return losses


def global_phase(
    dual: DualLlama, incoming: Adapter, updates: Sequence[Update], learning_rate: float
) -> tuple[Adapter, list[float]]:
    """Trains a copy of the incoming global adapter alone (g = 1, l = 0)."""
    dual.load("global", incoming)
    trained = dual.start("global", global_weight=1.0, local_weight=0.0)
    losses = train(dual, trained, updates, learning_rate)
    return dual.adapter("global"), losses


def local_phase(
    dual: DualLlama,
    incoming: Adapter,
    local: Adapter,
    updates: Sequence[Update],
    learning_rate: float,
    *,
    local_weight: float,
    detached: bool,
) -> tuple[Adapter, list[float]]:
    """Trains the client's local adapter beside the frozen global one (g = 1 - a, l = a)."""
    dual.load("global", incoming)
    dual.load("local", local)
    trained = dual.start(
        "local",
        global_weight=1.0 - local_weight,
        local_weight=local_weight,
        detach_global=detached,
    )
    losses = train(dual, trained, updates, learning_rate)
    return dual.adapter("local"), losses


def mean(adapters: Sequence[Adapter]) -> Adapter:
    """The server's step: the mean of every A and of every B, each client counting the same."""
    return {
        target: {name: np.mean([each[target][name] for each in adapters], axis=0) for name in "ab"}
        for target in adapters[0]
    }


def run_feddpa_t(
    model: LlamaForCausalLM,
    global_adapter: Adapter,
    local_adapters: Sequence[Adapter],
    batches: Sequence[Sequence[Phases]],
    *,
    alpha: float,
    learning_rate: float,
    local_weight: float,
    detached: bool,
) -> OracleResult:
    """FedDPA-T: in each round each client trains its local adapter, then a copy of the global one.

    Args:
      model: the base, float32 or float64; it is not changed.
      global_adapter: the first global adapter, {target: {"a": [L, in, R], "b": [L, R, out]}}.
      local_adapters: each client's local adapter before its first local phase, in round 1.
      batches: `batches[round][client]` has the updates of "global" and, from round 1 on, of
        "local"; an update is a list of micro-batches, those are lists of (tokens, prompt length).
      alpha: LoRA's alpha; the rank is the adapters'.
      learning_rate: of the first update of each local training.
      local_weight: a, the weight of the local adapter in its phase.
      detached: whether gradients stop at the frozen global branch's output, as in the release.
    """
    dual = DualLlama(model, global_adapter, alpha)
    global_, locals_ = global_adapter, list(local_adapters)
    losses, global_by_round = [], []
    for round_, clients in enumerate(batches):
        assert len(clients) == len(locals_), f"round {round_}: {len(clients)} clients"
        losses.append([])
        copies = []
        for client, phases in enumerate(clients):
            own = {}
            assert ("local" in phases) == (round_ > 0), f"round {round_}: phases {list(phases)}"
            if round_ > 0:
                locals_[client], own["local"] = local_phase(
                    dual,
                    global_,
                    locals_[client],
                    phases["local"],
                    learning_rate,
                    local_weight=local_weight,
                    detached=detached,
                )
            trained, own["global"] = global_phase(dual, global_, phases["global"], learning_rate)
            copies.append(trained)
            losses[-1].append(own)
        global_ = mean(copies)
        global_by_round.append(global_)
    return OracleResult(losses, global_, locals_, global_by_round)


def run_feddpa_f(
    model: LlamaForCausalLM,
    global_adapter: Adapter,
    batches: Sequence[Sequence[Phases]],
    personalization: Sequence[Sequence[Update]],
    *,
    alpha: float,
    learning_rate: float,
) -> OracleResult:
    """FedDPA-F: global rounds, then one training per client from the final global adapter.

    Args:
      model: the base, float32 or float64; it is not changed.
      global_adapter: the first global adapter.
      batches: `batches[round][client]["global"]`, the updates of the global phases.
      personalization: `personalization[client]`, the updates of the last training, which gives the
        client's local adapter.
      alpha: LoRA's alpha.
      learning_rate: of the first update of each local training.
    """
    dual = DualLlama(model, global_adapter, alpha)
    global_, losses, global_by_round = global_adapter, [], []
    for round_, clients in enumerate(batches):
        trained = []
        for phases in clients:
            assert list(phases) == ["global"], f"round {round_}: phases {list(phases)}"
            trained.append(global_phase(dual, global_, phases["global"], learning_rate))
        losses.append([{"global": own} for _, own in trained])
        global_ = mean([adapter for adapter, _ in trained])
        global_by_round.append(global_)
    personal = [global_phase(dual, global_, updates, learning_rate) for updates in personalization]
    return OracleResult(
        losses,
        global_,
        [adapter for adapter, _ in personal],
        global_by_round,
        [own for _, own in personal],
    )


def hf_to_parameters(model: LlamaForCausalLM) -> dict[str, np.ndarray]:
    """A Llama's weights by this project's dotted paths: kernels are [in, out], no tied head."""
    tensors = {name: tensor.detach().numpy() for name, tensor in model.named_parameters()}
    parameters = {
        "embed.embedding": tensors["model.embed_tokens.weight"],
        "norm.scale": tensors["model.norm.weight"],
    }
    if not model.config.tie_word_embeddings:
        parameters["lm_head.kernel"] = tensors["lm_head.weight"].T
    for layer in range(model.config.num_hidden_layers):
        theirs, ours = f"model.layers.{layer}", f"layers.{layer}"
        parameters[f"{ours}.attention_norm.scale"] = tensors[f"{theirs}.input_layernorm.weight"]
        parameters[f"{ours}.mlp_norm.scale"] = tensors[f"{theirs}.post_attention_layernorm.weight"]
        for target, block in BLOCKS.items():
            kernel_DE = tensors[f"{theirs}.{block}.{target}.weight"].T
            name = "attention" if block == "self_attn" else "mlp"
            parameters[f"{ours}.{name}.{target}.kernel"] = kernel_DE
    return {path: np.array(array) for path, array in parameters.items()}
