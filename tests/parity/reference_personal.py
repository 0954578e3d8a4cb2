"""Personalization methods in PyTorch, from their papers: Ditto, FDLoRA, FedALT.

Li, Hu, Beirami, Smith, *Ditto: Fair and Robust Federated Learning Through Personalization*,
arXiv 2012.04221.
Qi, Luan, Huang, Fung, Yang, Qian, *FDLoRA: Personalized Federated Learning of Large Language Model
via Dual LoRA Tuning*, arXiv 2406.07925.
Bian, Wang, Zhang, Xu, *FedALT: Federated Fine-Tuning through Adaptive Local Training with
Rest-of-World LoRA*, arXiv 2503.11880.

`batches[round]` has the participants of a round and their updates by phase:
{client: {phase: updates}}. Whoever is not there keeps what it has.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from transformers import LlamaForCausalLM

from tests.parity.reference_loop import MicroBatch, Phases, Update
from tests.parity.reference_mix import (
    Leaves,
    MixedLlama,
    Part,
    alone,
    average,
    combine,
    proximal,
)

Rounds = Sequence[Mapping[int, Phases]]
Absent = Literal["sent", "initial", "left_out"]
# The fusion weights that FDLoRA's search may not leave, and the strength of their L1 norm.
FUSION_BOUND, FUSION_L1 = 1.5, 0.05


@dataclasses.dataclass(frozen=True)
class Result:
    """What a federated training leaves behind.

    Attributes:
      losses: `losses[round][client][phase]`, the task's loss of every update before it is made.
      penalties: the same of the penalty.
      server: `server[round][part]` after the round.
      clients: `clients[round][client][part]` after the round, of all clients.
    """

    losses: list[dict[int, dict[str, list[float]]]]
    penalties: list[dict[int, dict[str, list[float]]]]
    server: list[dict[str, Part]]
    clients: list[list[dict[str, Part]]]


def run_ditto(
    model: LlamaForCausalLM,
    global_: Part,
    locals_: Sequence[Part],
    batches: Rounds,
    *,
    alpha: float,
    learning_rate: float,
    strength: float,
) -> Result:
    """Ditto: v_k approaches its own loss's minimum and the global w; w is FedAvg's.

    In a round w is sent to the participants. Each trains its own v_k, from where it was, on
    F_k(v_k) + strength / 2 * |v_k - w|^2, and a copy of w on F_k; the copies' mean is the next w.

    Args:
      model: the base; it is not changed.
      global_: the first w.
      locals_: each client's first v_k.
      batches: by round and participant, the updates of the phases "local" and "global".
      alpha: LoRA's alpha; the rank is the adapters'.
      learning_rate: of the first update of each local training.
      strength: lambda.
    """
    llama = MixedLlama(model, list(global_), alpha)
    own, result = list(locals_), Result([], [], [], [])
    penalty = proximal("local", "global", strength)
    for participants in batches:
        losses, penalties, copies = {}, {}, []
        for client, phases in participants.items():
            parts = {"local": own[client], "global": global_}
            near = llama.train(
                parts, alone("local"), ["local"], phases["local"], learning_rate, penalty
            )
            copy = llama.train(
                {"global": global_}, alone("global"), ["global"], phases["global"], learning_rate
            )
            own[client] = near.parts["local"]
            copies.append(copy.parts["global"])
            losses[client] = {"local": near.task_losses, "global": copy.losses}
            penalties[client] = {"local": near.penalties, "global": copy.penalties}
        global_ = average(copies)
        result.losses.append(losses)
        result.penalties.append(penalties)
        result.server.append({"global": global_})
        result.clients.append([{"local": part} for part in own])
    return result


@dataclasses.dataclass(frozen=True)
class FdloraResult:
    """What FDLoRA's first two stages leave behind.

    Attributes:
      personal_losses: `[client]`, of the first stage.
      first: the parts after the first stage: the server's seed, and each client's personal part.
      rounds: the second stage; its only phase is "global".
    """

    personal_losses: list[list[float]]
    first: tuple[Part, list[Part]]
    rounds: Result


def run_fdlora(
    model: LlamaForCausalLM,
    personals: Sequence[Part],
    personal_updates: Sequence[Sequence[Update]],
    batches: Rounds,
    *,
    alpha: float,
    learning_rate: float,
    sync_every: int,
    outer_learning_rate: float,
    outer_momentum: float,
) -> FdloraResult:
    """FDLoRA, stages 1 and 2: personal parts, whose mean seeds the global part's rounds.

    Algorithm 1: each client trains its personal part theta_p alone (lines 1 to 6); theta_s is their
    mean (7). In round t = 1, 2, ... each participant trains a copy of theta_s alone (12), which
    also becomes its theta_p if t is a multiple of H (9, 14). The server steps with the mean of
    theta_s - copy as a gradient, with Nesterov's momentum (17, 18).

    Args:
      model: the base; it is not changed.
      personals: each client's first personal part.
      personal_updates: `[client]`, of the first stage; everybody takes part.
      batches: by round and participant, the updates of the phase "global".
      alpha: LoRA's alpha.
      learning_rate: of the first update of each local training.
      sync_every: H.
      outer_learning_rate: of the server's step; 1 without momentum is the mean.
      outer_momentum: of the server's step.
    """
    llama = MixedLlama(model, list(personals[0]), alpha)
    stage = [
        llama.train({"personal": part}, alone("personal"), ["personal"], updates, learning_rate)
        for part, updates in zip(personals, personal_updates, strict=True)
    ]
    own = [each.parts["personal"] for each in stage]
    global_ = average(own)
    first = (global_, list(own))
    velocity = combine([global_], [0.0])
    result = Result([], [], [], [])
    for t, participants in enumerate(batches, start=1):
        losses, copies = {}, []
        for client, phases in participants.items():
            copy = llama.train(
                {"global": global_}, alone("global"), ["global"], phases["global"], learning_rate
            )
            copies.append(copy.parts["global"])
            losses[client] = {"global": copy.losses}
            if t % sync_every == 0:
                own[client] = copies[-1]
        change = combine([global_, average(copies)], [1.0, -1.0])
        velocity = combine([velocity, change], [outer_momentum, 1.0])
        global_ = combine(
            [global_, change, velocity],
            [1.0, -outer_learning_rate, -outer_learning_rate * outer_momentum],
        )
        result.losses.append(losses)
        result.server.append({"global": global_})
        result.clients.append([{"personal": part} for part in own])
    return FdloraResult([each.losses for each in stage], first, result)


def fused(personal: Part, global_: Part, weights: tuple[float, float]) -> Part:
    """FDLoRA, stage 3: A = w1 A_p + w2 A_s and B = w1 B_p + w2 B_s."""
    return combine([personal, global_], weights)


def fusion_objective(
    llama: MixedLlama,
    personal: Part,
    global_: Part,
    weights: tuple[float, float],
    examples: MicroBatch,
) -> float:
    """What the fusion weights minimise: the examples' loss and 0.05 times the mean of |w|."""
    part = fused(personal, global_, weights)
    loss = llama.mean_loss({"fused": part}, alone("fused"), examples)
    return loss + FUSION_L1 * float(np.mean(np.abs(weights)))


def fusion_by_grid(
    llama: MixedLlama,
    personal: Part,
    global_: Part,
    examples: MicroBatch,
    *,
    step: float,
) -> tuple[tuple[float, float], float]:
    """The best fusion weights of a grid over the bounds, and their objective."""
    axis = np.arange(-FUSION_BOUND, FUSION_BOUND + step / 2, step)
    scored = [
        (fusion_objective(llama, personal, global_, (float(w1), float(w2)), examples), w1, w2)
        for w1 in axis
        for w2 in axis
    ]
    objective, w1, w2 = min(scored)
    return (float(w1), float(w2)), objective


def mixer(x_BTD: torch.Tensor, leaves: Leaves) -> dict[str, torch.Tensor]:
    """FedALT's mixer: the softmax of x G is the weights of (rest of the world, own)."""
    weight_BT2 = torch.softmax(x_BTD @ leaves["gate"]["gate"], dim=-1)
    return {"row": weight_BT2[..., :1], "own": weight_BT2[..., 1:]}


def run_fedalt(
    model: LlamaForCausalLM,
    owns: Sequence[Part],
    gates: Sequence[Part],
    batches: Rounds,
    *,
    alpha: float,
    learning_rate: float,
    absent: Absent = "sent",
    trains_gate: bool = True,
) -> Result:
    """FedALT: each client trains its own adapter and its mixer beside a frozen mean of the others'.

    y = x W + s * (w_own(x) x A_k B_k + w_row(x) x A_k^R B_k^R), with the leave-one-out mean
    A_k^R = mean over m != k of A_m, and B alike. The own part and the mixer are never reset. In the
    first round the rest of the world is zero, and the mixer weighs it all the same.

    Args:
      model: the base; it is not changed.
      owns: each client's first own part.
      gates: each client's first mixer, {target: {"gate": [L, in, 2]}}, rest of the world first.
      batches: by round and participant, the updates of the phase "local".
      alpha: LoRA's alpha.
      learning_rate: of the first update of each local training.
      absent: how a client that does not take part counts for the others; the paper has none.
        "sent": with what it sent last, and not before it has sent; "initial": the same, and
        before with its first own part; "left_out": the mean is over the last round's participants.
      trains_gate: the mixer trains; False: it stays as it is.

    Returns:
      The clients' parts are "own", "gate" and "row", the rest of the world that a client would be
      sent in the next round.
    """
    llama = MixedLlama(model, list(owns[0]), alpha)
    own, gate = list(owns), list(gates)
    sent: dict[int, Part] = dict(enumerate(owns)) if absent == "initial" else {}
    result = Result([], [], [], [])
    for participants in batches:
        losses, uploads = {}, {}
        for client, phases in participants.items():
            done = llama.train(
                {"own": own[client], "gate": gate[client], "row": rest(sent, client, own[client])},
                mixer,
                ["own", "gate"] if trains_gate else ["own"],
                phases["local"],
                learning_rate,
            )
            own[client], gate[client] = done.parts["own"], done.parts["gate"]
            uploads[client] = own[client]
            losses[client] = {"local": done.losses}
        sent = uploads if absent == "left_out" else {**sent, **uploads}
        result.losses.append(losses)
        result.server.append({})
        result.clients.append(
            [
                {"own": part, "gate": gate[client], "row": rest(sent, client, part)}
                for client, part in enumerate(own)
            ]
        )
    return result


def rest(sent: Mapping[int, Part], client: int, like: Part) -> Part:
    """The mean of what all clients but one have sent; zero if there is nothing."""
    others = [part for name, part in sent.items() if name != client]
    return average(others) if others else combine([like], [0.0])
