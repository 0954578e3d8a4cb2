"""An export on disk: written aside, read back, and only then put in its place."""

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from feddpa_jax.data.statistics import describe
from feddpa_jax.evaluate.modes import available_modes
from feddpa_jax.export.card import adapter_card, export_card, model_card
from feddpa_jax.export.contents import Plan, make_plan
from feddpa_jax.export.instance_weights import CARRIED, Weighting, make_weightings, write_weighting
from feddpa_jax.export.read_back import check_export, has_effect
from feddpa_jax.export.routed import write_router
from feddpa_jax.export.routed_card import routed_card, router_settings
from feddpa_jax.export.trained import Trained
from feddpa_jax.files.disk import aside_of, clear_leftovers, is_leftover, sync, sync_tree, writing
from feddpa_jax.files.lock import hold
from feddpa_jax.hf.peft_format import write_adapter
from feddpa_jax.hf.record import FILES, RECORD, check_files, list_files
from feddpa_jax.hf.save import save_model
from feddpa_jax.hf.tensors import read_json
from feddpa_jax.run.inputs import encode
from feddpa_jax.types import UserError

_log = logging.getLogger(__name__)


def check_target(out: Path) -> None:
    """Refuses a folder that holds something; early, before anything is computed.

    What a killed command left there is no obstacle.

    Raises:
      UserError: what is there.
    """
    if out.exists() and not (out.is_dir() and all(map(is_leftover, out.iterdir()))):
        raise UserError(f"out: {out} is not empty; name a new folder")
    if os.path.ismount(out):
        raise UserError(f"out: {out} is a mount point; name a new folder in it")


def export(trained: Trained, out: Path, *, mixed: float | None, merged: str | None) -> None:
    """Writes a federation's adapters as PEFT folders, and checks what was written.

    Args:
      trained: what is exported.
      out: the target; new, or empty.
      mixed: local weight of `clients/<name>-mixed`, or None.
      merged: "global", "NAME" or "NAME:W" for a full model in `merged/`, or None.

    Raises:
      UserError: the target is not empty or cannot be written, the run lacks an adapter, or what was
        read back differs; nothing stays then.
    """
    check_target(out)
    plan = make_plan(trained, mixed=mixed, merged=merged)
    weightings = make_weightings(trained)
    place = out.resolve()  # A link stays one.
    aside = aside_of(place)
    with hold(place, "wait for it, or name another --out", _log.warning, shown=out):
        try:
            with writing(out):
                shutil.rmtree(aside, ignore_errors=True)
                aside.mkdir()
                options = {"mixed": mixed, "merged": merged}
                _write(aside, trained, plan, weightings, options)
                sync_tree(aside)
                _log.info("written; reading everything back")
                check_export(aside, plan, weightings, trained)
                check_target(out)
                clear_leftovers(out, locks=True)
                aside.rename(place)  # Over an empty folder, too.
                sync(aside.parent)
        except SafetensorError as error:
            raise UserError(f"{out}: cannot be written ({error}); make room") from None
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    for place, adapter in plan.adapters.items():
        if not has_effect(adapter):
            _log.warning(f"{place}: B is zero, as for an untrained adapter; it changes nothing")
    if not weightings and "instance" in available_modes(trained.adapters):
        _log.warning(
            f"instance weights: the rule {trained.config.weighting.rule} needs this package; an "
            f"export carries {', '.join(CARRIED)} (--weighting.rule)"
        )
    _log.info(f"{_listing(plan)} in {out}; every tensor equals the run's")


def check(trained: Trained, out: Path) -> None:
    """Compares an export that is there with the run.

    Raises:
      UserError: it is no export, or of another run or round, or differs.
    """
    record = read_json(out / RECORD)
    options = record.get("options")
    if not isinstance(options, dict) or not _is_of(options):
        raise UserError(f"{out / RECORD}: its options are damaged; export again")
    wanted = _record(trained, options)
    for name, value in json.loads(json.dumps(wanted)).items():
        if record.get(name) != value:
            raise UserError(
                f"{out / RECORD}: {name} is {json.dumps(record.get(name))}, the run's is "
                f"{json.dumps(value)}; compare with the run and --step that it was made from"
            )
    plan = make_plan(trained, mixed=options["mixed"], merged=options["merged"])
    check_export(out, plan, make_weightings(trained), trained)
    check_files(out, record.get(FILES, {}))  # Older versions listed none.


def _is_of(options: dict[str, Any]) -> bool:
    """Whether options are some that an export is made with."""
    mixed, merged = options.get("mixed"), options.get("merged")
    return (
        options.keys() == {"mixed", "merged"}
        and (mixed is None or (isinstance(mixed, int | float) and not isinstance(mixed, bool)))
        and (merged is None or isinstance(merged, str))
    )


def _listing(plan: Plan) -> str:
    places = [*plan.adapters, *plan.routed, *plan.models]
    shown = places if len(places) <= 4 else [*places[:3], f"... ({len(places)} folders)"]
    return ", ".join(shown)


def _record(trained: Trained, options: Any) -> dict[str, Any]:
    config, base = trained.config, trained.prepared.base
    held = {"quantize": base.quantize, "layouts": list(base.layouts)} if base.quantize else {}
    return {
        "format": 1,
        "method": config.fed.method,
        "round": trained.round_number,
        "seed": config.seed,
        "base": {"path": trained.base_name, "fingerprint": base.fingerprint, **held},
        "lora": {
            "rank": config.lora.rank,
            "alpha": config.lora.alpha,
            "targets": list(config.lora.targets),
        },
        "clients": list(trained.prepared.names),
        "options": options,
    }


def _write(
    folder: Path,
    trained: Trained,
    plan: Plan,
    weightings: dict[str, Weighting],
    options: dict[str, Any],
) -> None:
    config, base = trained.config, trained.prepared.base
    statistics = describe(
        trained.prepared.federation, lambda own: encode(config, base.tokenizer, own)
    )
    about = _record(trained, options)
    (folder / "README.md").write_text(export_card(trained, plan, statistics), encoding="utf-8")
    for place, out in plan.adapters.items():
        write_adapter(
            folder / place,
            out.adapter,
            base.model.config,
            alpha=out.alpha,
            dropout=config.lora.dropout,
            base=trained.base_hub_id,
            private=out.private,
        )
        weighting = weightings.get(place)
        if weighting is not None:
            write_weighting(folder / place, weighting)
        card = adapter_card(trained, place, out, statistics, weighting)
        (folder / place / "README.md").write_text(card, encoding="utf-8")
        # An adapter that is carried away alone still knows its base and its own bytes.
        _write_record(folder / place, about)
    for place, out in plan.routed.items():
        write_router(folder / place, out, base.model.config, router_settings(trained))
        card = routed_card(trained, place, out, statistics)
        (folder / place / "README.md").write_text(card, encoding="utf-8")
        _write_record(folder / place, about)
    for place, out in plan.models.items():
        change = out.change(trained.adapters.scale)
        save_model(folder / place, base, change, private=out.private)
        card = model_card(trained, place, out, statistics)
        (folder / place / "README.md").write_text(card, encoding="utf-8")
    _write_record(folder, about)


def _write_record(folder: Path, about: dict[str, Any]) -> None:
    text = json.dumps({**about, FILES: list_files(folder)}, indent=2) + "\n"
    (folder / RECORD).write_text(text, encoding="utf-8")
