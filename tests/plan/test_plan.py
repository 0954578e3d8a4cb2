"""Plans: what the TPU compiler says of the round, for a slice that is not at hand."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.monitoring
import numpy as np
import pytest

from feddpa_jax.adapters.mix import alone
from feddpa_jax.cli.program import main
from feddpa_jax.devices.mesh import make_mesh, put_base
from feddpa_jax.federated.feddpa_t import feddpa_t
from feddpa_jax.federated.method import Phase
from feddpa_jax.federated.play import copies
from feddpa_jax.models.decoder import random_model
from feddpa_jax.models.model_shapes import model_shapes
from feddpa_jax.plan.collectives import find_collectives
from feddpa_jax.plan.programs import compile_averages, compile_steps
from feddpa_jax.plan.round_work import count_work, many_clients
from feddpa_jax.plan.topology import prepare_environment, topology_devices
from feddpa_jax.training.engine import make_engine
from feddpa_jax.training.memory import MemoryPlan, plan_memory
from feddpa_jax.training.rows import BlockShape
from feddpa_jax.training.step import Frozen
from tests.federated.player import lora_for
from tests.training.objectives import beside
from tests.training.test_engine import CONFIG, NAMES, make_data, new_adapter

KEY = jax.random.key(5)
ROOT = Path(__file__).parents[2]
TINY = ["--config", str(ROOT / "configs" / "tiny.yaml")]


def plan(tmp_path: Path, *more: str) -> dict:
    """A plan by the command line, in a process of its own: the compiler is set up before JAX."""
    command = [sys.executable, "-m", "feddpa_jax", "plan", *TINY, "--out", str(tmp_path / "p")]
    ran = subprocess.run([*command, *more], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return json.loads((tmp_path / "p" / "plan.json").read_text()) | {"shown": ran.stdout}


def test_a_slice_that_is_not_at_hand(tmp_path):
    options = ["--clients", "24", "--fed.method", "fedit", "--model.dtype", "bfloat16"]
    options += ["--model.attention", "splash", "--model.layers", "looped"]
    told = plan(tmp_path, "--topology", "v5e:2x4", *options)
    assert told["devices"] == {"kind": "TPU v5 lite", "count": 8}
    assert told["mesh"] == {"clients": 8, "model": 1} and told["slots"] == 24
    *steps, average = told["programs"]
    assert [step["phase"] for step in steps] == ["global"]
    for step in steps:
        assert step["collectives"] == {}
        assert step["seconds"] > 0 and step["flops"] > 0 and 0 < step["peak_share"] < 1 + 1e-9
        assert 0 < step["main_bytes_accessed"] < step["bytes_accessed"]
        memory = step["memory"]
        assert memory["limit"] == 16 * 2**30
        assert memory["total"] == sum(list(memory.values())[:4]) < memory["limit"]
    assert average["phase"] == "average"
    assert {kind: own["count"] for kind, own in average["collectives"].items()} == {"all-reduce": 1}
    # One vector of the whole adapter, in float32.
    assert average["collectives"]["all-reduce"]["size"] == pytest.approx(
        told["client_bytes_sent"], rel=0.05
    )
    assert told["round"]["tokens_per_second"] > 0
    assert "an upper bound" in told["shown"] and "1 all-reduce" in told["shown"]
    assert told["attention"] == "splash" and "fused kernel (splash)" in told["shown"]


def test_client_state_is_split_on_a_slice():
    prepare_environment()
    mesh = make_mesh(devices=topology_devices("v5e:2x4"))
    model = model_shapes(CONFIG, "bfloat16")
    model = dataclasses.replace(model, params=put_base(model.params, mesh, "tensor"))
    engine = make_engine(model, mesh=mesh, scale=2.0, dropout=0.3, learning_rate=1e-2)
    adapter = jax.eval_shape(new_adapter, jax.random.key(0))
    frozen = Frozen({"global": adapter}, {})
    given = (beside(), {"local": adapter}, frozen, 16, BlockShape(2, 16, 32))
    compiled = engine.lower(*given).compile()
    assert find_collectives(compiled.as_text() or "") == {}
    for sharding in jax.tree.leaves(compiled.output_shardings):
        assert sharding.shard_shape((16,)) == (2,)
    method = feddpa_t(lora_for(new_adapter, make_data()))
    (average,) = compile_averages(engine, method, method.phases, 16)
    assert {kind: own.count for kind, own in average.collectives.items()} == {"all-reduce": 1}


def small_engine(clients: int = 2):
    mesh = make_mesh(clients, 1)
    base = random_model(CONFIG, jax.random.key(3))
    base = dataclasses.replace(base, params=put_base(base.params, mesh, "tensor"))
    return base, make_engine(base, mesh=mesh, scale=2.0, dropout=0.3, learning_rate=1e-2)


def test_training_runs_the_planned_program():
    base, engine = small_engine()
    data = make_data(shards=2)
    shapes = data.shapes(2)
    adapter = new_adapter(jax.random.key(0))
    method = feddpa_t(lora_for(new_adapter, data))
    slots = data.slots(len(NAMES))
    programs = list(
        compile_steps(
            engine,
            base,
            method,
            method.phases,
            slots=slots,
            shapes=shapes,
            limit=None,
            chip=None,
        )
    )
    assert len(programs) == 2 * len(shapes)
    compiled = 0

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        nonlocal compiled
        compiled += event == "/jax/core/compile/backend_compile_duration"

    bank = copies(adapter, slots, engine.mesh)

    def train(phase: Phase, name: str, frozen: Frozen) -> None:
        chunk = next(data.chunks(np.arange(4), 0, name, shapes))
        engine.train(phase.objective, {phase.name: bank}, frozen, chunk, key=KEY)

    local, shared = method.phases
    for phase in method.phases:  # What begins a training is compiled for its leaves.
        engine.start(phase.objective, {phase.name: bank})
    train(Phase("global", ("global",), alone("global")), "a", Frozen({}, {}))
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        train(shared, "b", Frozen({}, {}))
        train(local, "b", Frozen({"global": adapter}, {}))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled == 0


def test_memory_part_by_part():
    base, engine = small_engine()
    adapter = new_adapter(jax.random.key(0))
    own = sum(leaf.nbytes for leaf in jax.tree.leaves(adapter))
    plans = []
    for slots, rows in ((2, 2), (4, 2), (2, 16)):
        given = {"local": adapter}, Frozen({"global": adapter}, {})
        compiled = engine.lower(beside(), *given, slots, BlockShape(rows, 32, 64)).compile()
        plans.append(plan_memory(compiled, base, *given, slots=slots // 2, limit=10**6))
    first, clients, blocks = plans
    assert first.base == sum(leaf.nbytes for leaf in jax.tree.leaves(base))
    assert first.adapters == 2 * own + 2 * own and first.optimizer == 3 * own
    assert clients.optimizer == 2 * first.optimizer and clients.base == first.base
    assert blocks.activations > 3 * first.activations and blocks.optimizer == first.optimizer
    # The remedy is for what takes the most.
    assert (
        MemoryPlan(1, 1, 1, 9, 11).remedy()
        == "lower fed.block_tokens, or set model.remat to cheap or layer"
    )
    assert MemoryPlan(1, 3, 9, 2, 11).remedy() == "lower fed.clients_per_step"
    assert "mesh.model" in (MemoryPlan(9, 1, 1, 1, 11).remedy() or "")
    assert MemoryPlan(9, 1, 1, 0, 11).remedy() is None and first.remedy() is None


def test_work_of_many_clients():
    data = many_clients(make_data(), 10)
    assert len(set(data.names)) == 10 and data.examples[0] is data.examples[4]
    shapes = data.shapes(2)
    work = count_work(data, shapes)
    assert work.real_tokens == sum(map(data.tokens, range(10)))
    tokens = sum(count * s.rows * s.length for s, count in work.blocks.items())
    assert tokens == pytest.approx(work.computed_tokens)
    assert 0.5 < work.real_tokens / work.computed_tokens <= 1


def test_collectives_are_read_off_the_text():
    text = """
      %a = (f32[4,2]{1,0}, bf16[6]{0}) all-reduce(%x, %y), to_apply=%add
      %g = (f32[1,8]{1,0}, f32[4,8]{1,0}) all-gather-start(%z), dimensions={0}
      %h = f32[4,8]{1,0} all-gather-done(%g)
      %p = pred[16]{0} collective-permute(%q), source_target_pairs={{0,1}}
      %n = f32[9]{0} add(%all-reduce.1, %b), metadata={op_name="all-reduce(x)"}
    """
    found = {kind: tuple(own) for kind, own in find_collectives(text).items()}
    assert found == {"all-reduce": (1, 44), "all-gather": (1, 128), "collective-permute": (1, 16)}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--topology", ""], "--topology: is empty"),
        (["--topology", "v5e:banana"], "--topology: 'v5e:banana' is no slice"),
        (["--clients", "0"], "--clients: 0 is not a number from 1 to 100,000"),
        (["--clients", "1000000000000"], "--clients: 1000000000000 is not a number from 1"),
        (["--model.path", "random:gpt-9"], "model.path: random:gpt-9 is not known; known: smollm2"),
    ],
)
def test_bad_options(capsys, monkeypatch, more: list[str], message: str):
    # What a command sets for its own process.
    for name in ("JAX_PLATFORMS", "TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        monkeypatch.setenv(name, os.environ.get(name, "cpu" if name.startswith("JAX") else "1"))
    assert main(["plan", *TINY, *more]) == 2
    assert message in capsys.readouterr().err
