"""Ditto: each client's own adapter stays near the global one, which is FedAvg's.

Li, Hu, Beirami, Smith: *Ditto: Fair and Robust Federated Learning Through Personalization*, ICML
2021, arXiv 2012.04221, Algorithm 1. Each client k minimises

    F_k(v_k) + strength / 2 * ||v_k - w||^2,        w = FedAvg's adapter.

Every v_k starts as w. In round t each participant

    1. receives w,
    2. trains v_k, from where it was, with the gradient of F_k(v_k) + strength * (v_k - w),
    3. trains a copy of w on F_k alone,
    4. sends the copy; the server averages the copies,
           w = sum over k of share_k * copy_k.

What was trained together: v_k is trained alone in the forward pass, w alone as well, and a client
answers with v_k. The modes fixed and instance combine w ("global") and v_k ("local") at inference
only.
"""

from feddpa_jax.federated.method import METHODS, Lora, Method, Part, Phase
from feddpa_jax.federated.penalty import proximal
from feddpa_jax.types import UserError


@METHODS.register(title="Ditto", answers_with="local")
def ditto(lora: Lora, *, strength: float = 1.0) -> Method:
    """Ditto; `strength` is lambda: 0 is local training, and a large one keeps v_k at w.

    Reference: the authors' code trains v_k and the copy in turn, batch by batch, with plain SGD.
    Here each is a local training of its own; neither looks at what the other has just done. The
    pull is clipped with the rest of the gradient, and goes through AdamW.

    Raises:
      UserError: `strength` is negative.
    """
    if strength < 0.0:
        raise UserError(f"fed.options: strength is {strength}; ditto needs 0 or more")
    return Method(
        parts={"global": Part("server", lora.fresh), "local": Part("client", "global")},
        phases=(
            # 1. and 2. The own adapter, pulled towards the round's incoming global one.
            Phase(
                "local",
                train=("local",),
                beside=("global",),
                penalty=proximal("local", to="global", strength=strength),
            ),
            # 3. and 4. The copy of the global adapter, of which the server takes the mean.
            Phase("global", train=("global",), stream=1),
        ),
    )
