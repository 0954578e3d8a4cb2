"""`import feddpa_jax` is quick: nothing heavy that is not needed, no device."""

import json
import subprocess
import sys

_IMPORT = """
import json, resource, sys
import feddpa_jax
names = [getattr(feddpa_jax, name) for name in getattr(feddpa_jax, "__all__", ())]
used = resource.getrusage(resource.RUSAGE_SELF)
from jax._src import xla_bridge
print(json.dumps([sorted(sys.modules), used.ru_utime + used.ru_stime, len(xla_bridge._backends)]))
"""

_LIBRARIES = """
import resource
import flax, jax, optax
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime)
"""


def test_what_an_import_costs():
    done = subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, check=True)
    modules, seconds, devices = json.loads(done.stdout)
    heavy = {"matplotlib", "pandas", "transformers", "torch", "orbax", "datasets", "gguf"}
    assert heavy & set(modules) == set()
    assert devices == 0
    # Machines differ: by what the libraries that it stands on take alone.
    alone = subprocess.run([sys.executable, "-c", _LIBRARIES], capture_output=True, check=True)
    assert seconds < 3 * json.loads(alone.stdout)
