"""FedALT: each client's own adapter beside a frozen mean of all the others', and a trained gate.

Bian, Wang, Zhang, Xu: *FedALT: Federated Fine-Tuning through Adaptive Local Training with
Rest-of-World LoRA*, AAAI 2026, arXiv 2503.11880. For every token, with x the adapted map's input,

    r(x), l(x) = softmax(x G_k),
    y = x W + s * (r(x) * x A_rest[k] B_rest[k] + l(x) * x A_k B_k).

In round t each participant k

    1. receives the rest of the world, A and B each averaged on its own,
           rest[k] = 1 / (n - 1) * sum over m != k of adapter_m,
    2. trains its own adapter and its gate together, both from where they were, beside it,
    3. sends its adapter; the gate stays with it.

n counts the clients that have sent anything: one that is absent counts with what it sent last. The
paper has everybody in every round. As long as the others have sent nothing, rest[k] is zero.

What was trained together: the own adapter and the gate, beside the rest of the world. The mode gate
answers with that; global (the rest of the world alone), local (the own adapter alone), fixed and
instance only combine the two at inference. The gate is no weighting rule: it shares out each map's
input anew at each token, from hidden states that it has shaped itself, so one weight per instance
or layer made of it would be of another model.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from feddpa_jax.adapters.mix import Parts, Term, side_by_side
from feddpa_jax.federated.leave_one_out import add_up, change_of, have_sent, no_count, rest_of
from feddpa_jax.federated.method import METHODS, Answers, Lora, Method, Part, Phase


@METHODS.register(title="FedALT", answers_with="gate", modes=("gate",))
def fedalt(lora: Lora) -> Method:
    """FedALT.

    Reference: the authors' gate starts uniform within ±1/sqrt(in), ours at zero: one half each.
    """

    def nothing(key: jax.Array) -> Any:
        return jax.tree.map(jnp.zeros_like, lora.fresh(key))

    def even(key: jax.Array) -> Any:
        del key
        maps = lora.sizes.items()
        return {name: {"gate": jnp.zeros((lora.layers, size, 2))} for name, (size, _) in maps}

    return Method(
        parts={
            "sum": Part("server", nothing),
            "senders": Part("server", no_count),
            "local": Part("client", lora.fresh),
            "gate": Part("client", even),
            "sent": Part("client", no_count),
        },
        phases=(
            Phase(
                "local",
                train=("local", "gate"),
                mix=_gated,
                receive=_rest,
                sends=("local",),
                reduce="sum",
                upload=lambda new_C, own_C: change_of(
                    new_C["local"], own_C["local"], own_C["sent"]
                ),
                keep=lambda new_C, own_C, number: {**new_C, "sent": have_sent(own_C["sent"])},
                server=add_up,
            ),
        ),
        answers=_answers,
    )


def _gated(parts: Parts) -> Sequence[Term]:
    return [Term(side_by_side([parts["rest"], parts["local"]], parts["gate"]))]


def _rest(server: Mapping[str, Any], own_C: Mapping[str, Any], members: np.ndarray) -> Any:
    del members
    return {"rest": rest_of(server["sum"], server["senders"], own_C["local"], own_C["sent"])}


def _answers(server: Mapping[str, Any], own_C: Mapping[str, Any], members: np.ndarray) -> Answers:
    received = _rest(server, own_C, members)
    (term,) = _gated({**own_C, **received})
    return Answers(received["rest"], own_C["local"], {"gate": term.bank})
