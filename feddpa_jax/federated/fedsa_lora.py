"""FedSA-LoRA: A is shared, and every client keeps a B of its own.

Guo, Zeng, Wang, Fan, Wang, Qu: *Selective Aggregation for Low-Rank Adaptation in Federated
Learning*, ICLR 2025, arXiv 2410.01463. A_0 is drawn once, the same for all, and B_{c,0} = 0. In
round t each client

    1. receives A_t and takes its own B_c as it left it,
    2. trains both together from there,                y = x W + s * x A_c B_c,
    3. keeps B_c,
    4. sends A_c; the server averages,                 A_{t+1} = sum over c of share_c * A_c.

A client answers with the mean A and its own B, x A_{t+1} B_c, whether or not it took part in the
last round. Nothing shared is an adapter by itself, so there is no mode "global", and the other side
of a mix is the base: modes "fixed" and "instance" scale the own adapter,
y = x W + s * l * x A_{t+1} B_c.

The option `sends: b` is the reverse that the paper compares with: B is sent and averaged, and each
client keeps its A_c, which starts as the common A_0.

# Paper: the authors' code trains one model object for all clients in turn and loads only A into it,
# so there a client goes on with the B of the client before. Here, as in the text, B never leaves
# its client.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from feddpa_jax.adapters.lora import Adapter, bank_of
from feddpa_jax.adapters.mix import Parts, Term, factors
from feddpa_jax.federated.leaves import split
from feddpa_jax.federated.method import METHODS, Answers, Lora, Method, Part, Phase
from feddpa_jax.types import UserError


@METHODS.register(title="FedSA-LoRA", answers_with="local")
def fedsa_lora(lora: Lora, *, sends: str = "a") -> Method:
    """FedSA-LoRA; `sends` is the factor that is averaged, "a" or "b".

    Raises:
      UserError: `sends` is neither.
    """
    if sends not in ("a", "b"):
        raise UserError(f"fed.options: sends of fedsa_lora is {sends!r}; use a or b")
    keeps = "b" if sends == "a" else "a"

    def fresh(leaf: str):
        return lambda key: split(lora.fresh(key), (leaf,))[0]

    def joined(parts: Parts) -> Adapter:
        return factors({sends: parts["global"], keeps: parts["local"]})

    def answers(server: Mapping[str, Any], own_C: Mapping[str, Any], members: np.ndarray):
        del members
        return Answers({}, joined({"global": bank_of(server["global"]), "local": own_C["local"]}))

    return Method(
        parts={
            "global": Part("server", fresh(sends)),
            "first": Part("server", fresh(keeps)),
            "local": Part("client", "first"),
        },
        phases=(
            Phase(
                "both",
                train=("global", "local"),
                mix=lambda parts: [Term(joined(parts))],
                stream=1,
            ),
        ),
        answers=answers,
    )
