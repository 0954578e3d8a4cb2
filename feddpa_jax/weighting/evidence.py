"""What a weighting rule may see: prompts, adapters and the client's own examples.

There is no field for an instance's answer or another client's data, so no rule can use one. The
only answers that a rule can learn from are those of examples that the client itself held out. Of
other clients a rule sees what the server sends anyway: adapters that they had a part in.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from feddpa_jax.adapters.token_gate import TokenGate
from feddpa_jax.inference.mixture import Mixture
from feddpa_jax.short_repr import shape_of, short_repr

# A, the models that likelihoods are given under, in the order of the last axis.
MODELS = ("base", "global", "local")
# W, the local weights at which answers are scored, in the order of the last axis.
WEIGHTS = tuple(w / 8 for w in range(9))
# The fields that are an instance's own, and tell how many there are.
OF_INSTANCES = (
    *("query_BD", "query_BLD", "query_nll_BA", "query_nll_BTA", "query_mask_BT", "query_nll_BE"),
    *("entropy_BA", "entropy_BW", "entropy_BE", "length_B", "query_text", "query_mixture"),
)
# The fields that are of examples which the client held out.
OF_HELD_OUT = ("held_HD", "held_nll_HW", "held_text", "held_mixture")
# The fields that are texts, and whose: a rule that sees some is not compiled.
TEXTS = {"query_text": "B", "support_text": "M", "held_text": "H"}
# The fields that are functions of weights.
MIXTURES = ("query_mixture", "held_mixture")
# The fields that tell of every layer, without an instance.
OF_LAYERS = ("support_MLD", "held_mixture")


class Evidence(NamedTuple):
    """What is known of B instances at one client before it answers; None what no one asked for.

    A rule is a function of some of these, by name.

    Attributes:
      query_BD: the instances' prompts, embedded.
      support_BMD: M of the client's training prompts for each instance, embedded alike.
      support_MD: the same where all instances share them (not with `weighting.resample`).
      query_BLD: the prompts embedded before each layer, for a rule that weighs layers apart.
      support_MLD: the shared support before each layer.
      dream_ND: N base prompts (prompts that the base model alone wrote), embedded alike: examples
        of prompts that are not the client's own.
      query_nll_BA: mean negative log-likelihood of the prompts' tokens under each of `MODELS`.
      support_nll_MA: the same of the support's prompts.
      query_nll_BTA: negative log-likelihood of every token of the prompts under each of `MODELS`;
        T are the tokens of the longest prompt.
      query_mask_BT: where that is known: not of a prompt's first token, which nothing precedes, and
        not behind its last one. Where it is not, `query_nll_BTA` is 0.
      query_nll_BE: as `query_nll_BA`, under each adapter that other clients had a part in: the
        experts of FedLEASE in the order of their clusters; FedALT's rest of the world; else the
        global one.
      entropy_BA: entropy of the answer's first token under each of `MODELS`, in nats.
      entropy_BW: the same at each local weight of `WEIGHTS`; the global adapter gets the rest.
      entropy_BE: the same under each adapter that other clients had a part in.
      length_B: how many tokens each prompt has.
      held_HD: the prompts of H examples that the client held out, embedded alike.
      held_nll_HW: mean negative log-likelihood of their answers at each local weight of `WEIGHTS`;
        the global adapter gets the rest.
      query_text: the prompts as texts, in their template, B of them.
      support_text: the support's prompts, M of them (not with `weighting.resample`).
      held_text: the prompts of the examples that the client held out, H of them.
      query_mixture: the prompts as a function of the weights that they are answered under; see
        `Mixture`.
      held_mixture: the examples that the client held out, with their answers, likewise.

    >>> Evidence(query_BD=np.zeros((3, 4)), support_MD=np.zeros((5, 4))).rows()
    3
    """

    query_BD: jax.Array | np.ndarray | None = None
    support_BMD: jax.Array | np.ndarray | None = None
    support_MD: jax.Array | np.ndarray | None = None
    query_BLD: jax.Array | np.ndarray | None = None
    support_MLD: jax.Array | np.ndarray | None = None
    dream_ND: jax.Array | np.ndarray | None = None
    query_nll_BA: jax.Array | np.ndarray | None = None
    support_nll_MA: jax.Array | np.ndarray | None = None
    query_nll_BTA: jax.Array | np.ndarray | None = None
    query_mask_BT: jax.Array | np.ndarray | None = None
    query_nll_BE: jax.Array | np.ndarray | None = None
    entropy_BA: jax.Array | np.ndarray | None = None
    entropy_BW: jax.Array | np.ndarray | None = None
    entropy_BE: jax.Array | np.ndarray | None = None
    length_B: jax.Array | np.ndarray | None = None
    held_HD: jax.Array | np.ndarray | None = None
    held_nll_HW: jax.Array | np.ndarray | None = None
    query_text: Sequence[str] | None = None
    support_text: Sequence[str] | None = None
    held_text: Sequence[str] | None = None
    query_mixture: Mixture | None = None
    held_mixture: Mixture | None = None

    def __repr__(self) -> str:
        """In a line; see `short_repr`."""
        arrays = {name: own for name, own in self._asdict().items() if hasattr(own, "shape")}
        return short_repr(self, **{name: shape_of(own) for name, own in arrays.items()})

    def rows(self) -> int:
        """B."""
        parts = [getattr(self, name) for name in OF_INSTANCES if name not in MIXTURES]
        if self.query_mixture is not None:
            return self.query_mixture.count
        return next(len(part) for part in parts if part is not None)

    def pick(self, names: tuple[str, ...]) -> dict[str, Any]:
        """The named fields; a shared support stands for every instance's."""
        found = self
        if self.support_BMD is None and self.support_MD is not None and "support_BMD" in names:
            shape = (self.rows(), *self.support_MD.shape)
            found = self._replace(support_BMD=jnp.broadcast_to(self.support_MD, shape))
        return {name: getattr(found, name) for name in names}


@flax.struct.dataclass
class TrialMixture:
    """A stand-in for a `Mixture` where there is no model: everything is 0.

    Attributes:
      count: how many examples.
      layers: L.
      width: D.
    """

    count: int = flax.struct.field(pytree_node=False, default=1)
    layers: int = flax.struct.field(pytree_node=False, default=1)
    width: int = flax.struct.field(pytree_node=False, default=1)

    def entropy(self, weight: jax.Array | TokenGate) -> jax.Array:
        """As of `Mixture`."""
        if isinstance(weight, TokenGate):
            return jnp.zeros(self.count)
        chex.assert_shape(weight, [(self.count,), (self.count, self.layers)][weight.ndim - 1])
        return 0.0 * weight.reshape(self.count, -1).sum(axis=1)

    loss = entropy


def trial() -> Evidence:
    """Evidence of zeros to try a rule on: B = 3, M = 16, N = 8, H = 5, T = 6, E = 2, L = 2, D = 4.

    Every token's likelihood is known but the first one's; texts differ from each other.
    """
    sizes = {"B": 3, "M": 16, "N": 8, "H": 5, "T": 6, "E": 2, "L": 2, "D": 4}
    sizes |= {"A": len(MODELS), "W": len(WEIGHTS)}
    arrays: dict[str, Any] = {
        name: np.zeros([sizes[letter] for letter in name.rpartition("_")[2]], np.float32)
        for name in Evidence._fields
        if name not in (*MIXTURES, *TEXTS)
    }
    arrays["query_mask_BT"] = np.tile(np.arange(sizes["T"]) > 0, (sizes["B"], 1))
    texts = {
        name: [f"### Instruction:\nSay {i}.\n\n### Response:\n" for i in range(sizes[letter])]
        for name, letter in TEXTS.items()
    }
    mixtures = {
        name: TrialMixture(count=sizes[letter], layers=sizes["L"], width=sizes["D"])
        for name, letter in zip(MIXTURES, "BH", strict=True)
    }
    return Evidence(**arrays, **texts, **cast(Any, mixtures))
