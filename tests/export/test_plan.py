"""What an export consists of, by its parts and their weights."""

from types import SimpleNamespace
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from feddpa_jax.adapters.dual import Adapters
from feddpa_jax.adapters.lora import Adapter, bank_of
from feddpa_jax.config import load_config
from feddpa_jax.export.contents import Trained, make_plan
from feddpa_jax.run.inputs import Prepared


def adapter(value: float, *lead: int) -> Adapter:
    """Factors of one value, of q_proj alone."""
    return {
        "q_proj": {"a": jnp.full((*lead, 2, 4, 1), value), "b": jnp.full((*lead, 2, 1, 4), -value)}
    }


def test_the_parts_of_a_merged_model():
    """The global adapter is 1, anna's local one 3, ben's 5: each asked for gives other parts."""
    local_C = jax.tree.map(lambda *own: jnp.stack(own), adapter(3.0), adapter(5.0))
    prepared = cast(
        Prepared, SimpleNamespace(names=("anna", "ben"), base=SimpleNamespace(folder=None))
    )
    trained = Trained(
        load_config(), prepared, Adapters(bank_of(adapter(1.0)), local_C, 2.0), 0, None
    )
    expected = {
        "global": ([(1.0, 1.0)], False),
        "anna": ([(3.0, 1.0)], True),
        "ben": ([(5.0, 1.0)], True),
        "ben:0.25": ([(1.0, 0.75), (5.0, 0.25)], True),
    }
    for merged, (parts, private) in expected.items():
        out = make_plan(trained, mixed=None, merged=merged).models["merged"]
        found = [(float(np.asarray(own["q_proj"]["a"]).max()), w) for own, w in out.parts]
        assert (found, out.private) == (parts, private), merged
