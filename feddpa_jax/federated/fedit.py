"""FedIT: one global adapter, trained by all clients and averaged (FedAvg on LoRA).

Zhang et al., *Towards Building the Federated GPT: Federated Instruction Tuning*, arXiv 2305.05644.
In round t each client

    1. receives the global adapter,
    2. trains its copy on its own data,
    3. sends the copy; the server averages A and B each on its own,
           global = sum over c of share_c * copy_c.
"""

from feddpa_jax.federated.method import METHODS, Lora, Method, Part, Phase


@METHODS.register(title="FedIT", answers_with="global")
def fedit(lora: Lora) -> Method:
    """FedIT: the mean of all clients' copies of one adapter."""
    return Method(
        parts={"global": Part("server", lora.fresh)},
        phases=(Phase("global", train=("global",), stream=1),),
    )
