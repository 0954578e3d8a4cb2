"""What instance-wise mixing needs outside of this package: support embeddings, rule, prompt.

`weighting.json` and `weighting.safetensors` in a client's folder say how its instances are weighed.
`examples/instance_weights.py` does it with `transformers` and `peft` alone.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from feddpa_jax.data.templates import bound
from feddpa_jax.evaluate.modes import available_modes
from feddpa_jax.export.routed import is_routed
from feddpa_jax.export.trained import Trained
from feddpa_jax.files.escape import json_text
from feddpa_jax.hf.tensors import opened, read_json, write_tensors
from feddpa_jax.inference.scorer import Scorer
from feddpa_jax.run.evaluating import decoding, weighting_settings
from feddpa_jax.types import Example, UserError, client_id
from feddpa_jax.weighting.gathering import check_layer, pooled, support_draw
from feddpa_jax.weighting.looking import look

SETTINGS_FILE, SUPPORT_FILE = "weighting.json", "weighting.safetensors"


# The rules that need nothing but embeddings of the support, which an export can carry.
CARRIED = ("cosine", "pearson", "l2", "constant")


class Weighting(NamedTuple):
    """A client's weighting: settings as JSON, and its embedded support [M, D], float32."""

    settings: dict[str, Any]
    support_MD: np.ndarray


def make_weightings(trained: Trained) -> dict[str, Weighting]:
    """Every client's weighting by its folder's place.

    None where there are not both adapters, where one is routed, or where the rule is none of
    `CARRIED`.
    """
    config, prepared = trained.config, trained.prepared
    settings, adapters = weighting_settings(config), trained.adapters
    if "instance" not in available_modes(adapters) or settings.rule not in CARRIED:
        return {}
    if is_routed(adapters.global_C) or is_routed(adapters.local_C):
        return {}
    scorer = Scorer.for_examples(
        prepared.base.model,
        trained.adapters,
        [example for own in prepared.training for example in own],
        block_tokens=decoding(config, prepared).batch_tokens,
    )
    ids = [client_id(name) for name in prepared.names]
    draws = [
        support_draw(len(own), settings, 1, ident).reshape(-1)
        for own, ident in zip(prepared.training, ids, strict=True)
    ]
    drawn = [[own[i] for i in rows] for own, rows in zip(prepared.training, draws, strict=True)]
    check_layer(settings, prepared.base.model.config.layers)
    layers = None if settings.layer is None else [settings.layer]
    support = look(scorer, drawn, settings.embed_with, mixed=settings.mixed_at, layers=layers)
    template = bound(config.data.template, prepared.base.tokenizer)[0]
    described = {
        "rule": settings.rule,
        "scale": settings.scale,
        "scales": settings.scales,
        "embed_with": settings.embed_with,
        "embed_weight": settings.mixed_at,
        "pooling": settings.pooling,
        "layer": settings.layer,
        # The template's text with names in braces for what goes in.
        "prompt": template(Example("{instruction}", "")),
        "prompt_with_input": template(Example("{instruction}", "", "{input}")),
        "max_length": config.data.max_length,
        "max_new_tokens": config.eval.max_new_tokens,
        "stop_ids": list(prepared.base.tokenizer.stop_ids),
        "beams": config.eval.beams if config.eval.decoding == "beam" else 1,
    }
    return {
        f"clients/{name}": Weighting(described, pooled(support[c], settings.pooling))
        for c, name in enumerate(prepared.names)
    }


def write_weighting(folder: Path, weighting: Weighting) -> None:
    """Writes a client's weighting into its folder."""
    text = json_text(weighting.settings, indent=2) + "\n"
    (folder / SETTINGS_FILE).write_text(text, encoding="utf-8")
    # Embeddings of a client's own prompts.
    write_tensors(folder / SUPPORT_FILE, {"support": weighting.support_MD}, private=True)


def read_weighting(folder: Path) -> Weighting:
    """A client's weighting from its folder.

    Raises:
      UserError: it is missing or damaged.
    """
    settings = read_json(folder / SETTINGS_FILE)
    file = folder / SUPPORT_FILE
    with opened(file) as tensors:
        if list(tensors.keys()) != ["support"]:
            raise UserError(f"{file}: holds {list(tensors.keys())}, not 'support'")
        return Weighting(settings, tensors.get_tensor("support"))
