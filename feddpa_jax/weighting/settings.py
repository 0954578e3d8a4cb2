"""How instances are weighed: the rule and its settings."""

from typing import Annotated, Literal

from annotated_types import Ge, Le
from pydantic import AfterValidator

from feddpa_jax.checked_settings import MOST, Count, Finite, Fraction, check, doc, settings
from feddpa_jax.hyperparameters import Values
from feddpa_jax.weighting.rule import RULES, sees

Side = Literal["local", "global"]
Model = Literal["local", "global", "base", "mixed"]
Pooling = Literal["last", "mean"]


@settings("weighting")
class WeightingSettings:
    """How instances are weighed.

    Attributes:
      rule: name of the rule.
      scale: factor of the similarity.
      support: M, the number of training prompts that represent a client's data.
      scales: the adapter whose weight is the scaled similarity, "local" or "global".
      embed_with: the adapters under which prompts are embedded: "local", "global", "base"
        (none), or "mixed" (both, see `embed_weight`).
      pooling: "last" prompt token, or "mean" over the prompt.
      layer: number of layers after which prompts are embedded; None: all.
      resample: a new support for every instance.
      fixed: local weight of the mode "fixed".
      learn_from: what a rule that learns does so from: "validation", the examples that the client
        held out; "training", its support, where it held none out.
      seed: of the support's draw; None: the run's.
      parameters: the rule's hyperparameters that differ from their defaults, by name.
      embed_weight: local weight of the embeddings that are "mixed", the global adapter gets the
        rest; None: the weight that local adapters were trained at, 1/2 where they were not mixed.

    >>> WeightingSettings(rule="gate", parameters={"ridge": 0.1}).support
    5
    """

    rule: Annotated[str, doc("a registered rule, or your own as FILE.py:NAME")] = "cosine"
    scale: Annotated[float, Ge(0), Le(1e6), doc("factor of the similarity")] = 0.5
    support: Annotated[
        Count, Le(10_000), doc("number of training prompts that represent a client's data")
    ] = 5
    scales: Annotated[
        Side,
        doc("the adapter whose weight is scale * similarity; global: as in the released code"),
    ] = "local"
    embed_with: Annotated[
        Model,
        doc("the adapters under which prompts are embedded; mixed: both, at embed_weight"),
    ] = "local"
    pooling: Annotated[
        Pooling, doc("last: embed a prompt by its last token; mean: by the mean over its tokens")
    ] = "last"
    layer: Annotated[
        Annotated[int, Ge(0), Le(MOST)] | None,
        doc("number of layers after which prompts are embedded; null: all"),
    ] = None
    resample: Annotated[bool, doc("draw a new support for every instance")] = False
    learn_from: Annotated[
        Literal["validation", "training"],
        doc("training: a rule that learns may use the support of a client that held nothing out"),
    ] = "validation"
    fixed: Annotated[Fraction, doc("local weight of the fixed mix")] = 0.5
    seed: Annotated[
        Annotated[int, Ge(0), Le(2**32 - 1)] | None,
        doc("of the draws of the support; null: the run's seed"),
    ] = None
    parameters: Annotated[
        dict[str, bool | int | Finite | str],
        AfterValidator(Values),
        doc("the rule's hyperparameters by name, as {ridge: 0.1}; the others keep their defaults"),
    ] = Values()
    embed_weight: Annotated[
        Fraction | None,
        doc("local weight where embed_with is mixed; null: that of training (fed.local_weight)"),
    ] = None

    def __post_init__(self) -> None:
        """Refuses values out of range, and rules that nobody knows; no file is run."""
        check(self)
        RULES.check(self.rule)

    @property
    def mixed_at(self) -> float:
        """The local weight of mixed embeddings."""
        return 0.5 if self.embed_weight is None else self.embed_weight

    def sees(self) -> tuple[str, ...]:
        """The fields of `Evidence` that the rule is a function of."""
        return sees(RULES.find(self.rule))
