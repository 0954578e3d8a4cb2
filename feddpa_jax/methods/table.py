"""The methods by name, and what the run around them must know."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from feddpa_jax.methods.centralized import centralized
from feddpa_jax.methods.feddpa_f import feddpa_f
from feddpa_jax.methods.feddpa_t import feddpa_t
from feddpa_jax.methods.fedit import fedit
from feddpa_jax.methods.fedlora import fedlora
from feddpa_jax.methods.local import local
from feddpa_jax.methods.method import Method, Parts


class Entry(NamedTuple):
    """A method in the table.

    Attributes:
      build: makes it from its parts.
      answers_with: the inference mode that it is judged by.
      personalizes: whether one personalization of all clients follows the last round.
      pooled: whether all clients' data are trained on as one client's.
      phases: the phases of a round; of each, whether a frozen adapter lies beside the trained ones.
    """

    build: Callable[[Parts], Method]
    answers_with: str
    personalizes: bool = False
    pooled: bool = False
    phases: Mapping[str, bool] = MappingProxyType({"global": False})


METHODS: dict[str, Entry] = {
    "feddpa_t": Entry(
        feddpa_t, answers_with="instance", phases=MappingProxyType({"local": True, "global": False})
    ),
    "feddpa_f": Entry(feddpa_f, answers_with="instance", personalizes=True),
    "fedit": Entry(fedit, answers_with="global"),
    "fedlora": Entry(fedlora, answers_with="local", personalizes=True),
    "local": Entry(local, answers_with="local", phases=MappingProxyType({"local": False})),
    "centralized": Entry(centralized, answers_with="global", pooled=True),
}
