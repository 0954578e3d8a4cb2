"""A plan counts every chunk of the head's positions."""

import jax
import pytest

from feddpa_jax.devices.mesh import put_base, single_mesh
from feddpa_jax.models import head
from feddpa_jax.models.decoder import Model
from feddpa_jax.models.model_config import ModelConfig
from feddpa_jax.models.model_shapes import model_shapes
from feddpa_jax.plan.repeated_head import repeated_head

V, D, P = 512, 64, 60


def test_the_chunks_after_the_first_are_counted(monkeypatch):
    """Two products of V x D for each position, and some operations for each logit."""
    config = ModelConfig(V, D, 1, 2, 1, 8, 16)
    shapes = model_shapes(config, "float32")
    params = put_base(shapes.params, single_mesh(), "tensor")
    model = Model(params, shapes.definition, config)
    assert repeated_head(model, P, single_mesh()) == (0.0, 0.0, 0.0)
    # Four chunks of 15.
    monkeypatch.setattr(head, "MOST_LOGITS", 4 * V * 16)
    jax.clear_caches()
    found = repeated_head(model, P, single_mesh())
    assert found.flops == pytest.approx(3 * 15 * 4 * V * D, rel=0.1)
    # The head's weights twice and the logits once at the least.
    assert found.traffic > 3 * (2 * 4 * V * D + 4 * 15 * V)
