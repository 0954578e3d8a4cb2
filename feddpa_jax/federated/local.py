"""Local fine-tuning: each client trains an adapter of its own, and nothing is shared."""

from feddpa_jax.federated.method import METHODS, Lora, Method, Part, Phase


@METHODS.register(title="local training without a server", answers_with="local")
def local(lora: Lora) -> Method:
    """Local training: no server, and nothing is sent."""
    return Method(
        parts={"local": Part("client", lora.fresh)},
        phases=(Phase("local", train=("local",)),),
    )
