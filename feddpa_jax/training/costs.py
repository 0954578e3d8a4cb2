"""What rows, blocks and compilations cost on a kind of device, in tokens of the frozen maps."""

from typing import NamedTuple

from feddpa_jax.models.model_config import ModelConfig


class Costs(NamedTuple):
    """The costs of a computation.

    Attributes:
      block: of a block (its kernels' starts, dispatch, the clients' optimizers).
      compilation: of compiling a program.
      attention_length: a token in a row of T attends to T others; at this T attention costs as much
        as the frozen maps.
    """

    block: int
    compilation: int
    attention_length: int

    def row(self, length: int) -> float:
        """What a row costs: T (1 + T / attention_length).

        >>> Costs(block=64, compilation=5000, attention_length=400).row(100)
        125.0
        """
        return length * (1 + length / self.attention_length)


CPU_COSTS = Costs(block=64, compilation=5000, attention_length=400)


def costs_on(platform: str, config: ModelConfig) -> Costs:
    """The costs on a kind of device.

    A block of SmolLM2 takes an H200 16 ms beside its tokens (24 ms with 4,000, 50 ms with 16,400):
    1e11 FLOPs a layer, at the rate below, whatever the layer's width. So small models want large
    blocks there. TPUs run a block as one program; 1,024 tokens are a guess.

    Two CPU cores compile SmolLM2's step in 15 s, at 350 tokens a second; an H200 in 15 s too, in
    which it computes 3e15 FLOPs (7 million tokens of SmolLM2, 100,000 of a 7B model). The TPU
    compiler takes some ten times as long. SmolLM2's attention costs as much as its maps at some 400
    tokens, on either; in other models as their maps are to their heads.
    """
    if platform == "cpu":
        return CPU_COSTS
    tpu = platform == "tpu"
    meanwhile = 3e16 if tpu else 3e15
    maps = config.frozen_flops / (4 * config.layers * config.heads * config.head_dim)
    return Costs(
        block=1024 if tpu else round(1e11 * config.layers / config.frozen_flops),
        compilation=round(meanwhile / config.frozen_flops),
        attention_length=max(1, round(maps / 15.36)),  # 6,144 weights a query unit in SmolLM2
    )
