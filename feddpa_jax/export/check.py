"""Reads an export back and compares it with the plan, bit for bit."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from feddpa_jax.disk import sha256
from feddpa_jax.export.plan import AdapterOut, ModelOut, Plan, Trained
from feddpa_jax.export.weighting import Weighting, read_weighting
from feddpa_jax.hf.load import load_model
from feddpa_jax.hf.peft_format import CONFIG_FILE, RECORD, read_adapter
from feddpa_jax.hf.save import parameters_of
from feddpa_jax.hf.tensors import read_json
from feddpa_jax.types import UserError

# In the record: the digests of an export's files; and a file that everybody may edit.
FILES, CARD = "files", "README.md"


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
    for place, weighting in weightings.items():
        _check_weighting(folder / place, weighting)
    for place, out in plan.models.items():
        _check_model(folder / place, out, trained)


def list_files(folder: Path) -> dict[str, str]:
    """The sha256 of every file of an export but its cards, which may be edited, and its record."""
    files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    files.pop(RECORD, None)
    return {name: sha256(p) for name, p in files.items() if p.name != CARD}


def check_files(folder: Path, listed: Any) -> None:
    """Compares an export's files with what its record lists: those too that hold no tensors.

    Args:
      folder: the export.
      listed: by file, its sha256, as the record has it.

    Raises:
      UserError: a file is missing or has changed, or the list is damaged.
    """
    if not isinstance(listed, dict):
        raise UserError(f"{folder / RECORD}: its {FILES} are damaged; export again")
    for name, digest in listed.items():
        file = folder / name
        try:
            found = sha256(file) if file.is_file() else None
        except (OSError, ValueError) as error:
            raise UserError(f"{file}: cannot be read ({error}); export again") from None
        if found != digest:
            what = "is missing" if found is None else "has changed since it was written"
            raise UserError(f"{file}: {what}; export again")


def _check_adapter(folder: Path, out: AdapterOut, trained: Trained) -> None:
    found = read_adapter(folder, trained.prepared.base.model.config)
    for name, its, ours in (
        ("r", found.rank, out.rank),
        ("lora_alpha", found.alpha, out.alpha),
        ("base_model_name_or_path", found.base, trained.base_hub_id or ""),
        ("target_modules", sorted(found.targets), sorted(out.adapter)),
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
    found = load_model(str(folder), str(base.model.dtype))
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
