"""Reads an export back and compares it with the plan, bit for bit."""

import json
from pathlib import Path

import jax
import numpy as np

from feddpa_jax.export.contents import AdapterOut, ModelOut, Plan
from feddpa_jax.export.instance_weights import Weighting, read_weighting
from feddpa_jax.export.routed import check_router
from feddpa_jax.export.trained import Trained
from feddpa_jax.hf.load import load_base
from feddpa_jax.hf.peft_format import CONFIG_FILE, read_adapter
from feddpa_jax.hf.save import parameters_of
from feddpa_jax.hf.tensors import read_json
from feddpa_jax.types import UserError


def check_export(
    folder: Path, plan: Plan, weightings: dict[str, Weighting], trained: Trained
) -> None:
    """Compares an export with the run that it was made from.

    Args:
      folder: the export.
      plan: what it should hold.
      weightings: likewise.
      trained: the run.

    Raises:
      UserError: the first difference, with its file.
    """
    for place, out in plan.adapters.items():
        _check_adapter(folder / place, out, trained)
    for place, routed in plan.routed.items():
        check_router(folder / place, routed, trained.prepared.base.model.config)
    for place, weighting in weightings.items():
        _check_weighting(folder / place, weighting)
    for place, out in plan.models.items():
        _check_model(folder / place, out, trained)


def _check_adapter(folder: Path, out: AdapterOut, trained: Trained) -> None:
    found = read_adapter(folder, trained.prepared.base.model.config)
    ranks = {target: pair["a"].shape[-1] for target, pair in found.adapter.items()}
    for name, its, ours in (
        ("r", found.rank, out.rank),
        ("lora_alpha", found.alpha, out.alpha),
        ("base_model_name_or_path", found.base, trained.base_hub_id or ""),
        ("target_modules", sorted(found.targets), sorted(out.adapter)),
        ("rank_pattern", ranks, out.ranks),
        ("alpha_pattern", found.scales, out.scales),
    ):
        if its != ours:
            raise UserError(
                f"{folder / CONFIG_FILE}: {name} is {json.dumps(its)}, the run's is "
                f"{json.dumps(ours)}; export again"
            )
    for target, pair in out.adapter.items():
        for part, stack_LXY in pair.items():
            _compare(
                f"{folder}: lora_{part.upper()} of {target}",
                np.asarray(found.adapter[target][part]),
                np.asarray(stack_LXY, np.float32),
            )


def _check_weighting(folder: Path, weighting: Weighting) -> None:
    found = read_weighting(folder)
    if found.settings != json.loads(json.dumps(weighting.settings)):
        names = [k for k, v in weighting.settings.items() if found.settings.get(k) != v]
        raise UserError(f"{folder}: the weighting's {names} differ from the run's; export again")
    # Embeddings are computed anew, in blocks that may be shaped otherwise.
    if found.support_MD.shape != weighting.support_MD.shape or not np.allclose(
        found.support_MD, weighting.support_MD, rtol=1e-3, atol=1e-3
    ):
        raise UserError(f"{folder}: the support embeddings differ from the run's; export again")


def _check_model(folder: Path, out: ModelOut, trained: Trained) -> None:
    base = trained.prepared.base
    read_json(folder / "config.json")
    found = load_base(str(folder), str(base.model.dtype))
    if found.model.config != base.model.config:
        raise UserError(f"{folder / 'config.json'}: describes another model; export again")
    leaves = found.model.parameters()
    for path, array in parameters_of(base, out.change(trained.adapters.scale)):
        _compare(f"{folder}: {path}", np.asarray(leaves[path]), array)
    text = "The 7 clients' answers:\n\n<ok> été"
    if found.tokenizer.encode(text) != base.tokenizer.encode(text):
        raise UserError(f"{folder}: its tokenizer is not the base's; export again")


def _compare(what: str, found: np.ndarray, expected: np.ndarray) -> None:
    if found.tobytes() == expected.tobytes():
        return
    worst = np.max(np.abs(found.astype(np.float64) - expected.astype(np.float64)))
    raise UserError(f"{what} differs from the run's (by up to {worst:.3g}); export again")


def has_effect(out: AdapterOut) -> bool:
    """Whether an adapter changes anything: one whose B is all zero does not."""
    return any(bool(np.any(np.asarray(pair["b"]))) for pair in jax.device_get(out.adapter).values())
