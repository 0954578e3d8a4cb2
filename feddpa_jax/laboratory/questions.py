"""What the laboratory looks at, and which parts its evidence consists of."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from feddpa_jax.adapters.dual import Adapters
from feddpa_jax.types import TokenizedExample
from feddpa_jax.weighting.evidence import MODELS, WEIGHTS
from feddpa_jax.weighting.looking import MIXES, same_for_all
from feddpa_jax.weighting.settings import Model

# The models whose passes score answers too, at these weights.
AT_WEIGHT: dict[Model, float] = {"global": 0.0, "mixed": 0.5, "local": 1.0}
# Parts that are computed only for rules that see these fields.
_ASKED = {
    "prompts": ("query_nll_BA", "support_nll_MA"),
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
      embed_with: the models that rules embed prompts under; the paper's rule has "local".
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
    embed_with: tuple[Model, ...] = tuple(MIXES)

    @property
    def models(self) -> tuple[Model, ...]:
        """Those that prompts are looked at under: rules embed with them, or see their entropy."""
        seen = MODELS if "entropy_BA" in self.fields else ()
        return tuple(model for model in MIXES if model in {"local", *self.embed_with, *seen})

    def passes(self) -> dict[float, str]:
        """The parts that hold the answers' scores, by the weights of `WEIGHTS`."""
        found = {weight: f"weight_{weight:.3f}" for weight in WEIGHTS}
        for model in self.models:
            if model in AT_WEIGHT and (model != "mixed" or self.mixed == 0.5):
                found[AT_WEIGHT[model]] = self.name_of(model)
        return found

    def parts(self) -> tuple[str, ...]:
        """The parts of the evidence that are needed."""
        looked = [self.name_of(model) for model in self.models]
        dreamt = map(dreams_of, looked) if "dream_ND" in self.fields else ()
        asked = (name for name, own in _ASKED.items() if self.fields & set(own))
        return (*dict.fromkeys([*looked, *dreamt, *self.passes().values(), *asked]),)

    def name_of(self, part: str) -> str:
        """A part's name; prompts that are mixed at another weight than 1/2 are another part."""
        return part if part != "mixed" or self.mixed == 0.5 else f"mixed_{self.mixed:.6f}"

    def requests(self, adapters: Adapters) -> int:
        """How many requests `collect` scores under some adapters."""
        C, J, S = len(self.ids), len(self.instances), sum(map(len, self.training))
        of: dict[Model, int] = {m: 1 if same_for_all(m, adapters) else C for m in MIXES}
        parts = self.parts()
        found = sum(S + of[model] * J for model in self.models)
        found += sum(
            of[model] * len(self.dreams)
            for model in self.models
            if dreams_of(self.name_of(model)) in parts
        )
        found += sum(
            J * (of["global"] if weight == 0 else C)
            for weight, name in self.passes().items()
            if name.startswith("weight")
        )
        if "prompts" in parts:
            found += sum(of[model] * J + S for model in MODELS)
        if "tokens" in parts:
            found += sum(of[model] * J for model in MODELS)
        if "others" in parts:
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


def dreams_of(look: str) -> str:
    """The name of the part that holds the made-up prompts' embeddings, by that of a look's."""
    return f"{look}_dreams"
