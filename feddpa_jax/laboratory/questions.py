"""What the laboratory looks at, and which parts its evidence consists of."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from feddpa_jax.adapters.dual import Adapters
from feddpa_jax.types import TokenizedExample
from feddpa_jax.weighting.evidence import MODELS, WEIGHTS
from feddpa_jax.weighting.looking import MIXES, same_for_all

AT_WEIGHT = {"global": 0.0, "mixed": 0.5, "local": 1.0}
BETWEEN = {w: f"weight_{w:.3f}" for w in WEIGHTS if w not in AT_WEIGHT.values()}
# The scores at 1/2, where prompts are mixed at another weight.
HALF = "weight_0.500"
_PARTS = (*MIXES, *BETWEEN.values(), "prompts")
# Parts that are computed only for rules that see these fields.
_ASKED = {
    "tokens": ("query_nll_BTA", "query_mask_BT"),
    "others": ("query_nll_BE", "entropy_BE"),
}


@dataclasses.dataclass(frozen=True)
class Questions:
    """What is looked at.

    Attributes:
      ids: the clients' ids, for their draws.
      training: each client's examples.
      instances: J instances, those of validation and of the test together.
      dreams: made-up prompts.
      layers: after how many layers prompts are embedded, ascending.
      held: where each client's own held-out examples are among the instances.
      fields: of `Evidence`, those that rules ask for.
      read: the text of tokens.
      mixed: the local weight of the model "mixed", which prompts are embedded under.
    """

    ids: Sequence[int]
    training: Sequence[Sequence[TokenizedExample]]
    instances: Sequence[TokenizedExample]
    dreams: Sequence[TokenizedExample]
    layers: tuple[int, ...]
    held: Sequence[np.ndarray] = ()
    fields: frozenset[str] = frozenset()
    read: Callable[[np.ndarray], str] = repr
    mixed: float = 0.5

    def parts(self) -> tuple[str, ...]:
        """The parts of the evidence that are needed."""
        asked = (name for name, own in _ASKED.items() if self.fields & set(own))
        half = () if self.mixed == 0.5 else (HALF,)
        return (*(self.name_of(part) for part in _PARTS), *half, *asked)

    def name_of(self, part: str) -> str:
        """A part's name; prompts that are mixed at another weight than 1/2 are another part."""
        return part if part != "mixed" or self.mixed == 0.5 else f"mixed_{self.mixed:.6f}"

    def requests(self, adapters: Adapters) -> int:
        """How many requests `collect` scores under some adapters."""
        C, J, S = len(self.ids), len(self.instances), sum(map(len, self.training))
        of = {model: 1 if same_for_all(model, adapters) else C for model in MIXES}
        looks = sum(S + clients * (J + len(self.dreams)) for clients in of.values())
        prompts = sum(of[model] * J + S for model in MODELS)
        found = looks + (len(BETWEEN) + (HALF in self.parts())) * C * J + prompts
        if "tokens" in self.parts():
            found += sum(of[model] * J for model in MODELS)
        if "others" in self.parts():
            others = [same_for_all("global", own) for own in adapters.of_others()]
            found += sum(2 * J * (1 if shared else C) for shared in others)
        return found

    def folds(self) -> np.ndarray:
        """Which of two halves of a client's own held-out examples an instance is in, [C, J].

        -1 for instances that are not the client's own held-out ones, or its only one. A rule that
        learns from held-out examples is judged on each half by what it learnt from the other one.
        """
        fold_CJ = np.full((len(self.ids), len(self.instances)), -1)
        for c, held_H in enumerate(self.held):
            if len(held_H) > 1:
                fold_CJ[c, held_H] = np.arange(len(held_H)) % 2
        return fold_CJ

    def held_without(self, client: int, fold: int) -> np.ndarray:
        """Where a client's own held-out examples are that are not in a fold."""
        own_H = self.held[client] if self.held else np.zeros(0, int)
        return own_H[self.folds()[client, own_H] != fold] if fold >= 0 else own_H
