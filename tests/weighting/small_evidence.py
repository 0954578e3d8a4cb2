"""A query of two instances and a support of two examples each, small enough to reckon by hand."""

import jax.numpy as jnp

from feddpa_jax.weighting.evidence import Evidence

QUERY_BD = jnp.array([[1.0, 0.0, 1.0], [0.0, 2.0, 0.0]])
SUPPORT_BMD = jnp.array([[[2.0, 0.0, 0.0], [0.0, 0.0, 3.0]], [[0.0, 1.0, 0.0], [0.0, -1.0, 0.0]]])
EVIDENCE = Evidence(QUERY_BD, SUPPORT_BMD)
