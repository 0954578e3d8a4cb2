"""A Llama in PyTorch whose linear maps add any branches, weighted by any rule of their input.

    y = x W + alpha / rank * sum_n  weight_n(x) * x A_n B_n

The oracles of personalization methods say which branches there are, how they are weighted, and
which parts train. Numpy goes in and numpy comes out; there is no dropout.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import nn
from transformers import LlamaForCausalLM

from tests.parity.reference_loop import BLOCKS, Adapter, DualLlama, MicroBatch, Update, train

# A part: {target: {leaf: [L, ...]}}, with leaves a [L, in, R], b [L, R, out] or gate [L, in, K].
Part = Adapter
Parts = Mapping[str, Part]
# One layer's leaves of all parts on one target.
Leaves = Mapping[str, Mapping[str, torch.Tensor]]
# (x [B, T, in], leaves) -> {part: weight}, a number or [B, T, 1].
Rule = Callable[[torch.Tensor, Leaves], Mapping[str, torch.Tensor | float]]
# All layers' leaves, by part, target and leaf -> a number that is added to the loss.
Penalty = Callable[[Mapping[str, Mapping[str, Mapping[str, Sequence[torch.Tensor]]]]], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Training:
    """What one local training of one client leaves behind.

    Attributes:
      parts: all parts, the trained ones as they are now.
      losses: of each update before it is made, the penalty included.
      penalties: of each update, the penalty alone.
    """

    parts: dict[str, Part]
    losses: list[float]
    penalties: list[float]

    @property
    def task_losses(self) -> list[float]:
        """The losses without the penalty."""
        return [loss - penalty for loss, penalty in zip(self.losses, self.penalties, strict=True)]


def alone(part: str) -> Rule:
    """One branch, with the weight 1."""
    return lambda x_BTD, leaves: {part: 1.0}


def fixed(weights: Mapping[str, float]) -> Rule:
    """Constant weights by part."""
    return lambda x_BTD, leaves: weights


class MixedLinear(nn.Module):
    """A frozen linear map and the branches that a rule names.

    Attributes:
      leaves: this map's leaves by part; not parameters of the module.
      rule: gives the branches' weights.
    """

    def __init__(self, linear: nn.Linear, alpha: float):
        """Args: the frozen map and LoRA's alpha."""
        super().__init__()
        self.linear, self.alpha = linear, alpha
        self.leaves: dict[str, dict[str, torch.Tensor]] = {}
        self.rule: Rule = fixed({})

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """The map's output and the weighted branches."""
        y_BTE = self.linear(x_BTD)
        for part, weight in self.rule(x_BTD, self.leaves).items():
            a_DR, b_RE = self.leaves[part]["a"], self.leaves[part]["b"]
            y_BTE = y_BTE + self.alpha / a_DR.shape[-1] * weight * (x_BTD @ a_DR @ b_RE)
        return y_BTE


class MixedLlama(DualLlama):
    """A frozen copy of a Llama with a `MixedLinear` at every target of every layer."""

    def __init__(self, model: LlamaForCausalLM, targets: Sequence[str], alpha: float):
        """Args: the base (left as it is), the adapted maps, LoRA's alpha."""
        super().__init__(model, {}, alpha)
        self.dtype = next(model.parameters()).dtype
        self.mixed: dict[str, list[MixedLinear]] = {target: [] for target in targets}
        self.penalty: Penalty | None = None
        self.penalties: list[float] = []
        for target, maps in self.mixed.items():
            for layer in range(model.config.num_hidden_layers):
                path = f"model.layers.{layer}.{BLOCKS[target]}.{target}"
                linear = self.model.get_submodule(path)
                assert isinstance(linear, nn.Linear), path
                maps.append(MixedLinear(linear, alpha))
                self.model.set_submodule(path, maps[-1])

    def put(self, parts: Parts, rule: Rule) -> None:
        """Gives every map its leaves of these parts, and no others, and the rule."""
        for target, maps in self.mixed.items():
            for layer, mixed in enumerate(maps):
                mixed.rule = rule
                mixed.leaves = {
                    name: {
                        leaf: torch.tensor(np.array(stack_L[layer]), dtype=self.dtype)
                        for leaf, stack_L in part[target].items()
                    }
                    for name, part in parts.items()
                }

    def tensors(self, name: str) -> dict[str, dict[str, list[torch.Tensor]]]:
        """One part's tensors by target and leaf, in the order of the layers."""
        return {
            target: {
                leaf: [mixed.leaves[name][leaf] for mixed in maps] for leaf in maps[0].leaves[name]
            }
            for target, maps in self.mixed.items()
        }

    def get(self, name: str) -> Part:
        """A copy of one part."""
        return {
            target: {
                leaf: np.stack([tensor.detach().numpy().copy() for tensor in stack])
                for leaf, stack in leaves.items()
            }
            for target, leaves in self.tensors(name).items()
        }

    def loss(self, micro_batch: MicroBatch) -> torch.Tensor:
        """The mean negative log-likelihood over response tokens, plus the penalty if any."""
        loss = super().loss(micro_batch)
        if self.penalty is None:
            self.penalties.append(0.0)
            return loss
        penalty = self.penalty({name: self.tensors(name) for name in self.names()})
        self.penalties.append(penalty.item())
        return loss + penalty

    def names(self) -> list[str]:
        """The parts that the maps hold."""
        return list(next(iter(self.mixed.values()))[0].leaves)

    def train(
        self,
        parts: Parts,
        rule: Rule,
        trained: Sequence[str],
        updates: Sequence[Update],
        learning_rate: float,
        penalty: Penalty | None = None,
    ) -> Training:
        """One local training of all leaves of the trained parts, under one optimizer.

        The gradient of the penalty is clipped together with that of the loss, and both go through
        the optimizer.
        """
        self.put(parts, rule)
        self.penalty, self.penalties = penalty, []
        free = []
        for name in trained:
            for leaves in self.tensors(name).values():
                for stack in leaves.values():
                    free += [tensor.requires_grad_(True) for tensor in stack]
        losses = train(self, free, updates, learning_rate)
        told, penalties = iter(self.penalties), []
        for update in updates:
            penalties.append(float(np.mean([next(told) for _ in update])))
        self.penalty = None
        return Training({name: self.get(name) for name in parts}, losses, penalties)

    def mean_loss(self, parts: Parts, rule: Rule, examples: MicroBatch) -> float:
        """The mean negative log-likelihood over all response tokens, with nothing trained."""
        self.put(parts, rule)
        with torch.no_grad():
            return super().loss(examples).item()


def proximal(part: str, to: str, strength: float) -> Penalty:
    """strength / 2 times the squared distance of two parts, over all factors; `to` is constant."""

    def penalty(tensors: Mapping) -> torch.Tensor:
        squares = [
            ((near - far.detach()) ** 2).sum()
            for target, leaves in tensors[part].items()
            for leaf, stack in leaves.items()
            for near, far in zip(stack, tensors[to][target][leaf], strict=True)
        ]
        return strength / 2 * torch.stack(squares).sum()

    return penalty


def combine(parts: Sequence[Part], weights: Sequence[float]) -> Part:
    """The weighted sum of parts, leaf by leaf."""
    return {
        target: {
            leaf: sum(
                (weight * part[target][leaf] for part, weight in zip(parts, weights, strict=True)),
                np.zeros_like(array),
            ).astype(array.dtype)
            for leaf, array in leaves.items()
        }
        for target, leaves in parts[0].items()
    }


def average(parts: Sequence[Part]) -> Part:
    """The mean of parts, leaf by leaf, each counting the same."""
    return combine(parts, [1 / len(parts)] * len(parts))


def local_trainings(
    model: LlamaForCausalLM,
    part: Part,
    trainings: Sequence[Sequence[Update]],
    alpha: float,
    learning_rate: float,
) -> list[Part]:
    """One adapter alone, by the client loop of FedDPA's oracle: the adapter after each training."""
    dual, after = DualLlama(model, part, alpha), []
    dual.load("global", part)
    for updates in trainings:
        trained = dual.start("global", global_weight=1.0, local_weight=0.0)
        train(dual, trained, updates, learning_rate)
        after.append(dual.adapter("global"))
    return after
