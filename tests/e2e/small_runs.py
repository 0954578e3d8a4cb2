"""Runs that take a third of a second, for tests of what commands do with their files."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from feddpa_jax import experiment
from feddpa_jax.cli.program import main
from feddpa_jax.config import Config, to_yaml
from feddpa_jax.export import export_folder
from feddpa_jax.laboratory import candidates, collect, trying
from feddpa_jax.run import evaluating as evaluation
from feddpa_jax.run import loop as train
from tests.shared_steps import remembered, sharing_steps

SETTINGS = [
    *("--model.path", "tiny", "--model.dtype", "float32", "--lora.rank", "2"),
    *("--data.max_length", "64", "--data.validation", "1", "--fed.local_epochs", "1"),
    *("--fed.rounds", "3", "--fed.batch_size", "2", "--fed.micro_batch_size", "null"),
    *("--fed.learning_rate", "1e-2", "--fed.keep_checkpoints", "1"),
    *("--eval.metrics", "[nll]", "--weighting.support", "2"),
]


@contextlib.contextmanager
def quick() -> Iterator[None]:
    """What is computed is computed once: kills are about files. No clock, so all bits are equal."""

    def of_adapters(base: Any, adapters: Any, *rest: Any, **named: Any) -> bytes:
        return b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(adapters[:2]))

    def of_scorer(scorer: Any, questions: Any, *rest: Any) -> tuple[Any, ...]:
        return (of_adapters(None, scorer.adapters), *rest[:-1])

    def of_evidence(collected: Any) -> tuple[bytes, ...]:
        return (collected.nll_CJW.tobytes(), *map(bytes, collected.support_nll_A or ()))

    def what_is_read(config: Config, **named: Any) -> tuple[Any, ...]:
        files = sorted(Path(config.data.path).rglob("*.jsonl"))
        return (to_yaml(config), *named.items(), *(file.read_bytes() for file in files))

    with pytest.MonkeyPatch.context() as patch, sharing_steps():

        def remember(owner: Any, name: str, key: Callable[..., Any]) -> None:
            patch.setattr(owner, name, remembered(getattr(owner, name), key))

        for name in ("prepare", "prepare_together"):
            remember(experiment, name, lambda config, *rest, **named: what_is_read(config, **named))
        remember(evaluation, "evaluate", of_adapters)
        remember(collect, "_look", of_scorer)
        remember(collect, "_at_weight", of_scorer)
        remember(collect, "_prompts", of_scorer)
        remember(
            trying,
            "score_rule",
            lambda rule, grid, collected, *rest, **named: (
                rule,
                str(grid),
                *of_evidence(collected),
            ),
        )
        remember(
            candidates,
            "weigh",
            lambda collected, settings: (settings, *of_evidence(collected)),
        )
        remember(export_folder, "make_weightings", lambda trained: of_adapters(None, trained[2]))
        patch.setattr(train, "report_memory", lambda *arguments: None)
        patch.setattr(train, "time", SimpleNamespace(perf_counter=lambda: 0.0))
        # Orbax notes when it began and ended.
        clock = SimpleNamespace(time=lambda: 0.0, time_ns=lambda: 0)
        patch.setattr("orbax.checkpoint.experimental.v1._src.saving.execution.time", clock)
        yield


def write_data(folder: Path) -> Path:
    """Two clients with three and four examples, one of each held out, and two test instances."""
    for number, name in enumerate(("anna", "ben")):
        (folder / "clients" / name).mkdir(parents=True)
        lines = [
            json.dumps({"instruction": f"{name} {i}", "output": f"yes {i}", "task": name})
            for i in range(3 + number)
        ]
        (folder / "clients" / name / "train.jsonl").write_text("\n".join(lines) + "\n")
        (folder / "clients" / name / "test.jsonl").write_text(lines[0] + "\n")
    return folder


def command_of(name: str, root: Path, data: Path) -> list[str]:
    """A command that works on `root/run`, and writes below the root."""
    run = ["--run-dir", str(root / "run")]
    return {
        "train": ["train", *run, "--data.path", str(data), *SETTINGS],
        "eval": ["eval", *run, "--eval.modes", "[global,instance]"],
        "weigh": [
            *("weigh", *run, "--rules", "constant", "--scales", "0.5", "--layers", "1"),
            *("--exact", "0"),
        ],
        "generate": ["generate", *run, "--client", "anna", "--prompt", "Hi"],
        "report": ["report", str(root / "run"), "--out", str(root / "pages" / "page.html")],
        "export": ["export", *run, "--out", str(root / "exports" / "one"), "--mixed", "0.5"],
    }[name]


def refused(capsys: pytest.CaptureFixture[str], command: list[str], *words: str) -> None:
    """A command ends with exit code 2, and one line with these words."""
    capsys.readouterr()
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith("feddpa: error: ")
    assert error.count("\n") == 1
    for word in words:
        assert word in error
