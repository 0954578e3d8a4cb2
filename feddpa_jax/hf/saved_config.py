"""The `config.json` of a model that is written out, for `transformers` 5 and 4 alike.

`transformers` 5 reads `rope_parameters` and `dtype`; 4, and programs that are built on it, read
`rope_theta`, `rope_scaling`, `rope_local_base_freq` and `torch_dtype`, and take defaults where they
are missing, without a word. Both forms are written, from what was computed with.
"""

from collections.abc import Mapping
from typing import Any

from feddpa_jax.hf.families import write_hf_config
from feddpa_jax.models.model_config import ModelConfig

# Fields of a source that are not true of what is written from it, or name files that stay behind.
_UNTRUE = ("quantization_config", "transformers_version", "auto_map", "rope_parameters")


def saved_config(raw: Mapping[str, Any], config: ModelConfig, dtype: str) -> dict[str, Any]:
    """Completes the `config.json` that a base came with.

    Args:
      raw: its content; what is not about the computation stays.
      config: the decoder that was read from it.
      dtype: of the kernels that are written.

    >>> from feddpa_jax.models.model_config import Rope
    >>> config = ModelConfig(7, 4, 1, 2, 1, 2, 8, rope=Rope(5e5, "linear", 2.0))
    >>> found = saved_config({"quantization_config": {"bits": 4}}, config, "float32")
    >>> found["rope_theta"], found["rope_scaling"], "quantization_config" in found
    (500000.0, {'rope_type': 'linear', 'factor': 2.0}, False)
    """
    ours = write_hf_config(config)
    kept = {k: v for k, v in raw.items() if k not in _UNTRUE and not k.startswith("_")}
    return {
        **ours,
        **_older_windows(config),
        **kept,
        **_both_ropes(ours["rope_parameters"]),
        "architectures": ours["architectures"],
        "dtype": dtype,
        "torch_dtype": dtype,
    }


def _both_ropes(parameters: dict[str, Any]) -> dict[str, Any]:
    whole = parameters.get("full_attention", parameters)
    scaling = {name: value for name, value in whole.items() if name != "rope_theta"}
    ropes = {
        "rope_parameters": parameters,
        "rope_theta": whole["rope_theta"],
        # Where it is not null, `transformers` 5 reads it in the place of `rope_parameters`, with
        # the `rope_theta` above.
        "rope_scaling": None if scaling["rope_type"] == "default" else scaling,
    }
    local = parameters.get("sliding_attention")
    if local is not None:
        # `transformers` 4 scales the global layers alone: null stops it where that is not enough.
        plain = local["rope_type"] == "default"
        ropes["rope_local_base_freq"] = local["rope_theta"] if plain else None
    return ropes


def _older_windows(config: ModelConfig) -> dict[str, Any]:
    """Which layers see a window, as releases before `layer_types` have it, where they can."""
    layers = range(config.layers)
    if config.family in ("qwen2", "qwen3"):
        first = config.layers - len(config.local_layers)
        whole = config.local_layers == tuple(layers[first:])
        return {"max_window_layers": first} if whole else {}
    if config.family == "gemma3_text":
        for period in range(1, config.layers + 2):
            if config.local_layers == tuple(n for n in layers if (n + 1) % period):
                return {"sliding_window_pattern": period}
    return {}
