"""A small federation in a folder and in memory, whose experiments take seconds."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import feddpa_jax as fd
from feddpa_jax.run.beginning import restore
from feddpa_jax.run.folder import RunFolder
from tests.e2e.small_runs import SETTINGS, write_data


class Small(NamedTuple):
    """What small experiments are made of, and the options of the command that does the same."""

    base: fd.Base
    data: fd.Federation
    config: fd.Config
    options: list[str]

    def experiment(self, **given: Any) -> fd.Experiment:
        """An experiment of these parts."""
        return fd.Experiment(self.base, self.data, self.config, **given)


def small(folder: Path) -> Small:
    """Two clients of two and three examples, and two test instances."""
    write_data(folder)
    options = [
        *("--data.path", str(folder), *SETTINGS),
        *("--eval.metrics", "[nll, exact_match, rouge1]", "--eval.max_new_tokens", "4"),
    ]
    return Small(
        fd.load_base("tiny", dtype="float32"),
        fd.load_federation(str(folder), validation=1),
        fd.load_config(None, options),
        options,
    )


def bits(tree: Any) -> list[tuple[str, bytes]]:
    """The type and the bits of all arrays of a tree."""
    return [(str(leaf.dtype), np.asarray(leaf).tobytes()) for leaf in jax.tree.leaves(tree)]


def saved(made: Small, folder: Path, config: fd.Config | None = None) -> dict[str, Any]:
    """What a run folder holds, without the time that it took; adapters as bits."""
    experiment = made.experiment()
    run = RunFolder(folder)
    start = restore(config or experiment.config, experiment.prepared, run)
    assert start is not None
    lines = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    return {
        "config.yaml": run.config_file.read_bytes(),
        "rounds": start.rounds,
        "global": bits(start.state.server["global"]),
        "local": bits(start.state.clients.all()["local"]),
        "metrics.jsonl": [{**line, "seconds": None} for line in lines],
        "eval": {file.name: file.read_bytes() for file in sorted(run.evaluation.glob("*.json*"))},
        "files": sorted(
            str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()
        ),
    }
