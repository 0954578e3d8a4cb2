"""FDLoRA: a personal and a global adapter per client, fused at the end on a few examples.

Qi, Luan, Huang, Fung, Yang, Qian: *FDLoRA: Personalized Federated Learning of Large Language Model
via Dual LoRA Tuning*, arXiv 2406.07925, Algorithm 1.

    Stage 1. Every client k trains its personal adapter p_k alone; the server takes the mean,
                 w = mean over k of p_k.
    Stage 2. In round t = 1, 2, ... each participant
                 receives w and trains a copy w_k of it, alone in the forward pass,
                 if t is a multiple of `sync_every`: keeps the copy as its personal one, p_k = w_k,
                 sends the copy; the server steps with sum over k of share_k * (w - w_k) as a
                 gradient, with Nesterov's momentum (`nesterov.py`).
    Stage 3. After the last round every client fuses p_k and w (`fusion.py`).

Stage 1 is in the first round, of all clients, before t = 1.

What was trained together: each adapter is trained alone, and the mode fused answers with one made
of the two at the end. The modes fixed and instance mix w ("global") and p_k ("local") at inference
only, as two branches and not as one of added factors.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from feddpa_jax.adapters.lora import bank_of
from feddpa_jax.adapters.mix import Parts, Term
from feddpa_jax.federated.fusion import even_weights, find_weights, fused
from feddpa_jax.federated.method import METHODS, Answers, Lora, Method, Part, Phase, Search
from feddpa_jax.federated.nesterov import nesterov
from feddpa_jax.types import UserError


@METHODS.register(title="FDLoRA", answers_with="fused", personalizes=True, modes=("fused",))
def fdlora(
    lora: Lora,
    *,
    sync_every: int = 5,
    outer_learning_rate: float = 0.7,
    outer_momentum: float = 0.9,
    fusion_examples: int = 5,
) -> Method:
    """FDLoRA; until stage 3 the mode fused counts both adapters one half.

    Paper: line 9 of the algorithm prints `t % H`, its comment says every H rounds; the text has
    line 12 train the personal adapter, the algorithm the global one's copy, as here. The outer
    optimizer's defaults are DiLoCo's; what the paper took, and its H, is not known to us.

    Raises:
      UserError: an option is out of range.
    """
    for name, value in (("sync_every", sync_every), ("fusion_examples", fusion_examples)):
        if value < 1:
            raise UserError(f"fed.options: {name} is {value}; fdlora needs 1 or more")
    if outer_learning_rate <= 0.0 or not 0.0 <= outer_momentum < 1.0:
        raise UserError(
            f"fed.options: outer_learning_rate is {outer_learning_rate} and outer_momentum "
            f"{outer_momentum}; fdlora needs the first above 0 and the second from 0 to below 1"
        )

    def synced(trained_C: Any, own_C: Any, number: int) -> Any:
        del own_C
        return {"local": trained_C["global"]} if (number + 1) % sync_every == 0 else {}

    return Method(
        parts={
            "global": Part("server", lora.fresh),
            "velocity": Part("server", lambda key: jax.tree.map(jnp.zeros_like, lora.fresh(key))),
            "local": Part("client", "global"),
            "fusion": Part("client", even_weights),
        },
        phases=(
            Phase(
                "personal",
                train=("local",),
                sends=("local",),
                upload=lambda trained_C, own_C: {"global": trained_C["local"]},
                when=lambda number: number == 0,
                everybody=True,
            ),
            Phase(
                "global",
                train=("global",),
                keep=synced,
                server=nesterov(
                    "global",
                    "velocity",
                    learning_rate=outer_learning_rate,
                    momentum=outer_momentum,
                ),
                stream=1,
            ),
            Phase(
                "fusion",
                train=("fusion",),
                mix=_fused,
                beside=("local", "global"),
                search=Search(fusion_examples, find_weights),
                after=True,
            ),
        ),
        answers=_answers,
    )


def _fused(parts: Parts) -> Sequence[Term]:
    return [Term(fused(parts["local"], parts["global"], parts["fusion"]))]


def _answers(server: Mapping[str, Any], own_C: Mapping[str, Any], members: np.ndarray) -> Answers:
    del members
    shared = bank_of(server["global"])
    (term,) = _fused({**own_C, "global": shared})
    return Answers(shared, own_C["local"], {"fused": term.bank})
