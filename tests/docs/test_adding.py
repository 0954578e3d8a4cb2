"""The guides on how to add something: every block of each page runs, in its order."""

import dataclasses
import json
import re
import shlex
import tomllib
from pathlib import Path

import jax
import numpy as np
import pytest

from feddpa_jax.adapters.mix import Term
from feddpa_jax.cli.program import main
from feddpa_jax.data.templates import TEMPLATES
from feddpa_jax.evaluate.metrics import METRICS
from feddpa_jax.experiment import Experiment
from feddpa_jax.federated.method import (
    METHODS,
    Answers,
    Entry,
    Lora,
    Method,
    Part,
    Phase,
    Search,
)
from feddpa_jax.federated.server import Moment, Uploads
from feddpa_jax.hf.family import FAMILIES
from feddpa_jax.hf.names import file_name
from feddpa_jax.partitioning.partitioner import PARTITIONERS
from feddpa_jax.registry import Registry
from feddpa_jax.weighting.rule import RULES

GUIDES = Path(__file__).parents[2] / "docs/guides"
_BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
REGISTRIES: dict[str, Registry] = {
    "rules": RULES,
    "methods": METHODS,
    "templates": TEMPLATES,
    "metrics": METRICS,
    "families": FAMILIES,
    "partitioners": PARTITIONERS,
}


@pytest.fixture(autouse=True)
def as_before():
    """Forgets what a page registers."""
    known = {kind: set(registry) for kind, registry in REGISTRIES.items()}
    yield
    for kind, registry in REGISTRIES.items():
        for name in set(registry) - known[kind]:
            registry.remove(name)


def follow(page: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Runs a page's blocks in the working directory; what they print."""
    said, names = "", {"__name__": "notebook"}
    for language, title, text in _BLOCK.findall((GUIDES / page).read_text()):
        if title:
            Path(title).write_text(text)
        elif language == "python":
            exec(compile(text, page, "exec"), names)
        elif language == "bash":
            for line in text.strip().splitlines():
                program, *arguments = shlex.split(line)
                assert program == "feddpa"
                code = main(arguments)
                printed = capsys.readouterr()
                said += printed.out
                assert code == 0, f"{line}\n{printed.err}"
        elif language == "toml":
            (group,) = tomllib.loads(text)["project"]["entry-points"]
            assert group.removeprefix("feddpa_jax.") in REGISTRIES
        said += capsys.readouterr().out
    return said


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    """Pages write into the working directory."""
    monkeypatch.chdir(tmp_path)


def test_adding_a_rule(capsys):
    said = follow("adding_a_rule.md", capsys)
    assert "weighting.rule: running the code in my_rules.py" in said
    assert "[0.25 0.04]" in said
    summary = json.loads(Path("runs/a/eval/summary.json").read_text())
    assert summary["weighting"]["parameters"] == {"width": 0.5}
    assert Path("runs/a/eval/rules/my_rules.py").read_text() == Path("my_rules.py").read_text()
    settings = Path("runs/a/weigh/settings.csv").read_text()
    assert '""width"": 0.5' in settings and '""width"": 1.0' in settings


def test_adding_a_method(capsys):
    said = follow("adding_a_method.md", capsys)
    assert said.count("fed.method: running the code in my_methods.py") == 3
    _check_shared_layers(Path("runs/fedper"), Path("runs/lazy"))
    assert "True local" in said
    run = Path("runs/lazy")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [sorted(line["phases"]) for line in lines] == [["global"], ["global", "local"]]
    assert (run / "own_code/my_methods.py").read_text() == Path("my_methods.py").read_text()
    assert "lazy FedDPA-T" in Path("exports/lazy/README.md").read_text()
    assert "arXiv" not in Path("exports/lazy/README.md").read_text()
    # Another code is another run.
    Path("my_methods.py").write_text(Path("my_methods.py").read_text() + "\n# changed\n")
    for command in ("eval", "generate --client client_0 --prompt Hello"):
        name, *more = command.split()
        assert main([name, "--run-dir", "runs/lazy", *more]) == 2
        error = capsys.readouterr().err
        assert "the code of your own changed since the run began: fed.method" in error
        assert "own_code" in error


def _check_shared_layers(run: Path, whole: Path) -> None:
    """The lower layers are the same for all clients, the upper ones differ, half of it is sent."""
    own_C = Experiment.open(run).adapters.local_C
    assert own_C is not None
    for leaf in jax.tree.leaves(own_C):
        lower, upper = np.split(np.asarray(leaf), 2, axis=1)
        assert np.abs(lower - lower[:1]).max() == 0 < np.abs(lower).max()
        assert len({own.tobytes() for own in upper}) == len(upper) == 8
    for way in ("sent", "received"):
        half, all_ = (
            json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])[
                f"client_bytes_{way}"
            ]
            for folder in (run, whole)
        )
        assert 2 * half == all_ > 0


def test_the_guide_on_methods_names_everything_there_is():
    text = (GUIDES / "adding_a_method.md").read_text()
    everything = (
        *(field.name for field in [*dataclasses.fields(Method), *dataclasses.fields(Phase)]),
        *(*Part._fields, *Term._fields, *Lora._fields, *Entry._fields[1:]),
    )
    rows = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", text, re.MULTILINE))))
    assert [name for name in everything if name not in rows] == []
    inner = (*Search._fields, *Answers._fields, *Moment._fields, *Uploads._fields)
    assert [name for name in inner if not re.search(rf"\b{name}\b", text)] == []


def test_adding_a_template(capsys):
    said = follow("adding_a_template.md", capsys)
    assert "data.template: running the code in my_templates.py" in said
    assert "Add. 2 and 3:\n" in said


def test_dividing_data(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    said = follow("dividing_data.md", capsys)
    assert "partition: running the code in my_partitioners.py" in said
    assert "by_length(column=instruction, mixed=0.2)" in " ".join(said.split())
    assert "written to parts; use --data.path hf:parts" in said
    assert Path("parts_of_python/clients.svg").read_text().startswith("<svg")


def test_adding_a_metric(capsys):
    said = follow("adding_a_metric.md", capsys)
    assert "eval.metrics: running the code in my_metrics.py" in said
    assert "length error, words (lower is better)" in said
    assert "perplexity (lower is better)" in said


def test_adding_a_model_family(capsys):
    assert "8 (0, 1)" in follow("adding_a_model_family.md", capsys)
    table = FAMILIES["windowed_llama"].names
    assert file_name("embed.embedding", table) == ("model.tokens.weight", False)
