"""Federated dual-adapter fine-tuning of language models in JAX and Flax.

FedDPA: Yang, Long, Shen, Jiang, Blumenstein, *Dual-Personalizing Adapter for Federated Foundation
Models*, NeurIPS 2024, arXiv 2403.19211.

>>> import feddpa_jax as fd
>>> base = fd.load_base("tiny")
>>> data = fd.load_federation("sample", max_train=2, max_test=1)
>>> run = fd.Experiment(base, data, fd.Config(fed={"rounds": 1, "local_epochs": 1}))
>>> [done.number for done in run.rounds()]
[0]
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from feddpa_jax.adapters.dual import Adapters
    from feddpa_jax.adapters.mix import Term
    from feddpa_jax.comparison.compared import Comparison
    from feddpa_jax.comparison.comparing import compare
    from feddpa_jax.comparison.estimates import SeedsEstimate
    from feddpa_jax.comparison.over_seeds import over_seeds
    from feddpa_jax.config import Config, load_config
    from feddpa_jax.data.folders import load_federation
    from feddpa_jax.data.population_writer import write_population
    from feddpa_jax.data.templates import TEMPLATES as templates
    from feddpa_jax.evaluate.estimating import Summary
    from feddpa_jax.evaluate.interval import Estimate, Interval
    from feddpa_jax.evaluate.metrics import METRICS as metrics
    from feddpa_jax.evaluate.prompt import Weight
    from feddpa_jax.evaluate.results import Evaluation
    from feddpa_jax.experiment import Experiment
    from feddpa_jax.federated.method import METHODS as methods
    from feddpa_jax.federated.method import Answers, FedState, Lora, Method, Part, Phase
    from feddpa_jax.hf.family import FAMILIES as families
    from feddpa_jax.hf.load import Base, load_base
    from feddpa_jax.laboratory.laboratory import Laboratory
    from feddpa_jax.partitioning.partition import Partition, partition
    from feddpa_jax.partitioning.partitioner import PARTITIONERS as partitioners
    from feddpa_jax.partitioning.pool import Pool
    from feddpa_jax.preflight.preflight import Preflight, check
    from feddpa_jax.progress import Progress
    from feddpa_jax.registry import Registry
    from feddpa_jax.report import plot_scores as plot
    from feddpa_jax.report import write_report
    from feddpa_jax.run.answering import Answer
    from feddpa_jax.run.rescoring import rescore
    from feddpa_jax.run.round import Round
    from feddpa_jax.training.engine import Engine, make_engine
    from feddpa_jax.types import Client, Example, Federation, Turn, UserError
    from feddpa_jax.weighting.evidence import Evidence
    from feddpa_jax.weighting.rule import RULES as rules
    from feddpa_jax.weighting.settings import WeightingSettings
    from feddpa_jax.weighting.weights import make_weighting

# Where each public name is; imported when it is first asked for, so that `import feddpa_jax` and
# `feddpa --help` wait for nothing.
_HOMES = {
    "Adapters": "adapters.dual",
    "Answer": "run.answering",
    "Answers": "federated.method",
    "Base": "hf.load",
    "Client": "types",
    "Comparison": "comparison.compared",
    "Config": "config",
    "Engine": "training.engine",
    "Estimate": "evaluate.interval",
    "Evaluation": "evaluate.results",
    "Evidence": "weighting.evidence",
    "Example": "types",
    "Experiment": "experiment",
    "FedState": "federated.method",
    "Federation": "types",
    "Interval": "evaluate.interval",
    "Laboratory": "laboratory.laboratory",
    "Lora": "federated.method",
    "Method": "federated.method",
    "Part": "federated.method",
    "Partition": "partitioning.partition",
    "Phase": "federated.method",
    "Preflight": "preflight.preflight",
    "Pool": "partitioning.pool",
    "Progress": "progress",
    "Registry": "registry",
    "Round": "run.round",
    "SeedsEstimate": "comparison.estimates",
    "Summary": "evaluate.estimating",
    "Term": "adapters.mix",
    "Turn": "types",
    "UserError": "types",
    "Weight": "evaluate.prompt",
    "WeightingSettings": "weighting.settings",
    "check": "preflight.preflight",
    "compare": "comparison.comparing",
    "families": "hf.family",
    "load_base": "hf.load",
    "load_config": "config",
    "load_federation": "data.folders",
    "make_engine": "training.engine",
    "make_weighting": "weighting.weights",
    "methods": "federated.method",
    "metrics": "evaluate.metrics",
    "over_seeds": "comparison.over_seeds",
    "partition": "partitioning.partition",
    "partitioners": "partitioning.partitioner",
    "plot": "report",
    "rescore": "run.rescoring",
    "rules": "weighting.rule",
    "templates": "data.templates",
    "write_population": "data.population_writer",
    "write_report": "report",
}
# Their names there, where these differ.
_INNER = {
    "families": "FAMILIES",
    "methods": "METHODS",
    "metrics": "METRICS",
    "partitioners": "PARTITIONERS",
    "plot": "plot_scores",
    "rules": "RULES",
    "templates": "TEMPLATES",
}

__all__ = [
    "__version__",
    "Adapters",
    "Answer",
    "Answers",
    "Base",
    "Client",
    "Comparison",
    "Config",
    "Engine",
    "Estimate",
    "Evaluation",
    "Evidence",
    "Example",
    "Experiment",
    "FedState",
    "Federation",
    "Interval",
    "Laboratory",
    "Lora",
    "Method",
    "Part",
    "Partition",
    "Phase",
    "Pool",
    "Preflight",
    "Progress",
    "Registry",
    "Round",
    "SeedsEstimate",
    "Summary",
    "Term",
    "Turn",
    "UserError",
    "Weight",
    "WeightingSettings",
    "check",
    "compare",
    "families",
    "load_base",
    "load_config",
    "load_federation",
    "make_engine",
    "make_weighting",
    "methods",
    "metrics",
    "over_seeds",
    "partition",
    "partitioners",
    "plot",
    "rescore",
    "rules",
    "templates",
    "write_population",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"feddpa_jax.{_HOMES[name]}"), _INNER.get(name, name))
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
