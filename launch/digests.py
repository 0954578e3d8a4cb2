"""Digests of a run's adapters and answers: equal where two runs have the same bits.

.venv/bin/python launch/digests.py runs/a runs/b
"""

import hashlib
import sys
from pathlib import Path

import jax
import numpy as np

from feddpa_jax import Experiment


def digest(run: Path) -> dict[str, str]:
    """sha256 of the last adapters and of every answer; the first 16 digits."""
    adapters = Experiment.open(run).adapters
    shared = jax.tree.map(lambda leaf: leaf[0], adapters.global_C)
    arrays = jax.tree_util.tree_leaves_with_path((shared, adapters.local_C))
    whole = hashlib.sha256()
    for path, leaf in arrays:
        whole.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        whole.update(np.asarray(leaf).tobytes())
    found = {"adapters": whole.hexdigest()[:16]}
    answers = run / "eval" / "instances.jsonl"
    if answers.exists():
        found["answers"] = hashlib.sha256(answers.read_bytes()).hexdigest()[:16]
    return found


for folder in map(Path, sys.argv[1:]):
    print(folder, *(f"{name} {value}" for name, value in digest(folder).items()))
