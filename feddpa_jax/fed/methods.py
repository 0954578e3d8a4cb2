"""The methods by name."""

from collections.abc import Callable

from feddpa_jax.fed.centralized import centralized
from feddpa_jax.fed.feddpa_f import feddpa_f
from feddpa_jax.fed.feddpa_t import feddpa_t
from feddpa_jax.fed.fedit import fedit
from feddpa_jax.fed.fedlora import fedlora
from feddpa_jax.fed.local import local
from feddpa_jax.fed.method import Method, Parts

METHODS: dict[str, Callable[[Parts], Method]] = {
    "feddpa_t": feddpa_t,
    "feddpa_f": feddpa_f,
    "fedit": fedit,
    "fedlora": fedlora,
    "local": local,
    "centralized": centralized,
}
