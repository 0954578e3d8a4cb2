"""The settings of a small run that is exported, and the command."""

import json
from pathlib import Path
from typing import Any

from feddpa_jax.cli.program import main

SMALL = [
    *("--model.path", "tiny", "--model.dtype", "float32"),
    *("--data.max_length", "256", "--data.max_train", "3", "--data.max_test", "1"),
    *("--lora.rank", "2", "--lora.alpha", "32", "--lora.targets", "[q_proj, v_proj, down_proj]"),
    *("--fed.rounds", "3", "--fed.local_epochs", "1", "--fed.keep_checkpoints", "1"),
    *("--fed.batch_size", "2", "--fed.micro_batch_size", "null", "--fed.learning_rate", "0.05"),
    *("--eval.max_new_tokens", "6", "--weighting.support", "2"),
]


def export(run_dir: Path, out: Path, *more: str) -> int:
    return main(["export", "--run-dir", str(run_dir), "--out", str(out), *more])


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "eval/summary.json").read_text())
