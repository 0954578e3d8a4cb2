"""What the tests of methods are built from."""

from pathlib import Path
from typing import Any

import numpy as np

from feddpa_jax.adapters.lora import Adapter, take
from feddpa_jax.federated.clients import LocalAdapters
from feddpa_jax.federated.method import Parts
from feddpa_jax.run.client_files import ClientFiles
from feddpa_jax.training.engine import Engine
from feddpa_jax.training.rounds import TrainingData


def parts_for(
    engine: Engine, new_adapter: Any, data: TrainingData, folder: Path, kind: str = "uniform"
) -> Parts:
    """A method's parts for the clients of some data, with client files below a folder."""
    return Parts(
        engine=engine,
        new_adapter=new_adapter,
        aggregation=kind,
        names=data.names,
        id_C=np.array(data.ids, np.uint32),
        store=ClientFiles(folder, cached=2),
    )


def local_of(parts: Parts, bank: Adapter) -> LocalAdapters:
    """Local adapters that start as a bank's."""
    return LocalAdapters(parts.names, parts.store, lambda members: take(bank, np.array(members)))
