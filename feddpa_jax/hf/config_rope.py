"""Rotary positions in a `config.json`, as `transformers` 5.23 reads them.

It keeps all in `rope_parameters`, with a part for each kind of layers where they differ (Gemma 3).
Older releases write `rope_theta` and `rope_scaling`, and both may stand in one file: except in
Gemma 3, a `rope_scaling` that is not empty then replaces `rope_parameters` as a whole, and
`rope_theta` counts where neither has one.
"""

from collections.abc import Mapping
from typing import Any

from feddpa_jax.hf.config_fields import check_number, check_type
from feddpa_jax.models.model_config import Rope
from feddpa_jax.types import UserError

LOCAL, GLOBAL = "sliding_attention", "full_attention"
_THETA = 10000.0
_GEMMA_THETA = 1e6
_Raw = Mapping[str, Any]


def read_rope(raw: _Raw) -> Rope:
    """The positions of a family that has one kind of them.

    Args:
      raw: the file's content, its fields' types checked.

    Raises:
      UserError: a kind of scaling or a value that is not supported.
    """
    found = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    nested = [kind for kind in (LOCAL, GLOBAL) if kind in found]
    if nested:
        raise UserError(f"rope_parameters: {nested[0]} is not supported for {raw['model_type']}")
    return _rope({"rope_theta": raw.get("rope_theta", _THETA), **found}, raw)


def read_gemma_ropes(raw: _Raw) -> dict[str, Rope]:
    """The positions of Gemma 3's global and local layers, by kind.

    Here `rope_scaling` is added to the global layers' part, and values of `rope_parameters` that
    are in neither part have no effect.

    Args:
      raw: the file's content, its fields' types checked.

    Raises:
      UserError: a kind of scaling or a value that is not supported.
    """
    found = raw.get("rope_parameters")
    if found is None:
        found = {LOCAL: {"rope_type": "default"}, GLOBAL: {"rope_type": "default"}}
    parts = {}
    thetas = {
        GLOBAL: raw.get("rope_theta", _GEMMA_THETA),
        LOCAL: raw.get("rope_local_base_freq", _THETA),
    }
    for kind, theta in thetas.items():
        part = found.get(kind)
        scaling = raw.get("rope_scaling") if kind == GLOBAL else None
        if scaling is not None and part is None:
            raise UserError(f"rope_scaling stands beside rope_parameters without {GLOBAL}")
        if part is not None:
            check_type(f"rope_parameters: {kind}", part, (dict,))
        merged = {**({"rope_type": "default"} if part is None else part), **(scaling or {})}
        parts[kind] = _rope({"rope_theta": theta, **merged}, raw)
    return parts


def _rope(found: _Raw, raw: _Raw) -> Rope:
    if found.get("partial_rotary_factor", 1.0) not in (None, 1):
        raise UserError("rope_parameters: partial_rotary_factor is not supported")
    scaling = found.get("rope_type", found.get("type", "default"))
    check_type("rope_parameters: rope_type", scaling, (str,))

    def number(name: str) -> float:
        if name not in found:
            raise UserError(f"rope_parameters: {name} is missing, which {scaling} scaling needs")
        return check_number(f"rope_parameters: {name}", found[name])

    rope: dict[str, Any] = {"theta": number("rope_theta"), "scaling": scaling}
    if scaling in ("linear", "llama3"):
        rope["factor"] = number("factor")
    if scaling == "llama3":
        rope["low_frequency"] = number("low_freq_factor")
        rope["high_frequency"] = number("high_freq_factor")
        rope["original_positions"] = original = found.get("original_max_position_embeddings")
        check_type("rope_parameters: original_max_position_embeddings", original, (int,))
        # A value outside comes before the one inside.
        if raw.get("original_max_position_embeddings", original) != original:
            raise UserError(
                "original_max_position_embeddings appears twice, with two values; correct one"
            )
    return Rope(**rope)
