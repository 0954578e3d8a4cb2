"""Exports of runs with one kind of adapter, of chosen checkpoints, and the names they tell."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from feddpa_jax.cli.program import main
from feddpa_jax.config import load_config
from feddpa_jax.export.contents import Trained
from feddpa_jax.run.checkpoint import rounds_saved
from tests.export.tiny_run import SMALL, export, summary_of

pytestmark = pytest.mark.usefixtures("shared_steps")


def trained_on(path: str, folder: Path | None) -> Trained:
    config = load_config(None, ["--model.path", json.dumps(path)])
    base: Any = SimpleNamespace(folder=folder, quantize=None)
    return Trained(config, cast(Any, SimpleNamespace(base=base)), cast(Any, None), 0, None)


def test_no_path_of_this_machine_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/mine").mkdir(parents=True)
    (tmp_path / "models/mine.gguf").touch()
    hub = Path("cache/snapshots/0")
    cases = {
        ("org/model", hub): ("org/model", "org/model", "org/model"),
        ("models/mine", tmp_path / "models/mine"): (None, "mine", "path/to/mine"),
        (str(tmp_path / "models/mine"), tmp_path / "models/mine"): (None, "mine", "path/to/mine"),
        ("models/mine.gguf", None): (None, "mine.gguf", "base"),
        ("tiny", None): (None, "tiny", "base"),
    }
    for (path, folder), expected in cases.items():
        found = trained_on(path, folder)
        assert (found.base_hub_id, found.base_name, found.base_reference) == expected
    monkeypatch.chdir(tmp_path / "models/mine")
    assert trained_on(".", Path(".")).base_name == "mine"


def test_methods_with_one_kind_of_adapter(tmp_path: Path, capsys):
    for method, places in (("fedit", {"global"}), ("local", {"clients"})):
        run, out = tmp_path / method, tmp_path / f"{method}-out"
        more = ["--fed.method", method, "--fed.rounds", "1", "--no-eval"]
        assert main(["train", "--run-dir", str(run), *SMALL, *more]) == 0
        assert export(run, out) == 0
        assert {p.name for p in out.iterdir()} == {"README.md", "feddpa.json", "base", *places}
        assert not list(out.rglob("weighting.json"))
        assert "was not evaluated" in (out / "README.md").read_text()
        capsys.readouterr()
        assert export(run, tmp_path / "no", "--mixed", "0.5") == 2
        assert f"{method} has not both" in capsys.readouterr().err


def test_steps(tmp_path: Path, capsys):
    """The best checkpoint stays beside the last, and every command can name either."""
    run = tmp_path / "run"
    held = ["--data.validation", "1"]
    assert main(["train", "--run-dir", str(run), *SMALL, *held, "--no-eval"]) == 0
    losses = [
        json.loads(line)["validation_loss"]
        for line in (run / "metrics.jsonl").read_text().splitlines()
    ]
    best = int(np.argmin(losses))
    kept = rounds_saved(run / "checkpoints")
    assert kept == sorted({best, 2})
    assert export(run, tmp_path / "best", "--step", "best") == 0
    assert json.loads((tmp_path / "best/feddpa.json").read_text())["round"] == best
    assert export(run, tmp_path / "last", "--step", "2") == 0
    assert main(["eval", "--run-dir", str(run), "--step", "best", "--eval.metrics", "[nll]"]) == 0
    assert summary_of(run)["round"] == best
