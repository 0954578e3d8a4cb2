"""What evidence depends on, as digests: evidence of another identity is not used."""

import json
from pathlib import Path

import jax
import numpy as np

from feddpa_jax.adapters.dual import Adapters
from feddpa_jax.config import Config
from feddpa_jax.data.digest import digest_of_parts
from feddpa_jax.laboratory.collect import WEIGHTS
from feddpa_jax.laboratory.questions import Questions
from feddpa_jax.run.inputs import Prepared

# What evidence depends on: a change in any of these asks for new evidence.
CODE = (
    *(
        "types.py",
        "devices/contraction.py",
        "devices/storage.py",
        "quantization",
        "models",
        "adapters",
        "inference",
        "hf",
        "data",
    ),
    *("training/rows.py", "training/blocks.py", "training/packing.py", "training/costs.py"),
    *("training/rounds.py", "weighting/evidence.py", "weighting/support.py"),
    *("weighting/gathering.py", "weighting/looking.py", "laboratory/collect.py"),
    "laboratory/questions.py",
)


def identify(
    config: Config, prepared: Prepared, adapters: Adapters, questions: Questions
) -> dict[str, str]:
    """What the evidence depends on, each as a digest."""
    leaves = jax.tree.leaves((adapters.global_C, adapters.local_C, adapters.shared))
    examples = [*questions.instances, *questions.dreams]
    examples += [example for own in questions.training for example in own]
    package = Path(__file__).parents[1]
    files = [
        file
        for name in CODE
        for file in sorted((package / name).rglob("*.py") if "." not in name else [package / name])
    ]
    names = [client.name for client in prepared.federation.clients]
    return {
        "checkpoint": digest_of_parts([np.asarray(leaf).tobytes() for leaf in leaves]),
        "model": digest_of_parts([prepared.base.fingerprint.encode(), config.model.dtype.encode()]),
        "data (or --cells, --choose, --foreign or eval.clients)": digest_of_parts(
            [json.dumps(names).encode()]
            + [bytes([0]) + np.append(e.tokens_T, e.prompt_length).tobytes() for e in examples]
        ),
        "settings (layers, weights, LoRA)": digest_of_parts(
            [json.dumps([questions.layers, WEIGHTS, adapters.scale]).encode()]
        ),
        "code version": digest_of_parts([file.read_bytes() for file in files]),
        "JAX version": digest_of_parts([jax.__version__.encode()]),
        "kind of device": digest_of_parts([jax.default_backend().encode()]),
    }
