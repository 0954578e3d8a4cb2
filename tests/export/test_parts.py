"""Exports of parts of any shape: what `peft` and `transformers` compute with them is ours."""

import dataclasses
import json
import runpy
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

import feddpa_jax as fd
from feddpa_jax.adapters.dual import Adapters, merge
from feddpa_jax.adapters.lora import Branch
from feddpa_jax.adapters.mix import side_by_side
from feddpa_jax.adapters.router import EQUATIONS, NO_SLOT, ROUTERS
from feddpa_jax.export.contents import make_plan
from feddpa_jax.export.export_folder import check, export
from feddpa_jax.export.trained import Trained
from feddpa_jax.models.decoder import causal_mask
from feddpa_jax.run.inputs import prepare_values
from feddpa_jax.run.opening import checked, settled
from feddpa_jax.types import Client, Example, UserError

pytestmark = pytest.mark.usefixtures("shared_steps")

EXAMPLE = Path(__file__).parents[2] / "examples/routed_adapter.py"
RANK, ALPHA = 4, 6.0
NAMES = ("anna", "ben", "cleo")
TARGETS = ("q_proj", "down_proj")


@pytest.fixture(scope="module")
def given() -> Any:
    clients = tuple(Client(n, (Example(f"say {n}", n), Example("say hi", "hi"))) for n in NAMES)
    data = fd.Federation(clients, (Example("say hi", "hi"),))
    base = fd.load_base("tiny", dtype="float32")
    config = fd.Config(lora={"rank": RANK, "alpha": ALPHA, "targets": TARGETS})
    config = checked(settled(config, base, data))
    return config, prepare_values(config, base, data)


def bank(given: Any, count: int, ranks: Any = RANK, seed: int = 0) -> Any:
    """A bank of random factors: count clients, and a rank for all targets or one for each."""
    model = given[1].base.model.config
    draw = np.random.default_rng(seed)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(0.3 * draw.normal(size=(count, model.layers, *shape)), jnp.float32)

    found = {}
    for place, target in enumerate(TARGETS):
        rank = ranks if isinstance(ranks, int) else ranks[place]
        size_in, size_out = model.target_sizes()[target]
        found[target] = {"a": normal(size_in, rank), "b": normal(rank, size_out)}
    return found


def gate(given: Any, count: int, experts: int) -> Any:
    sizes = given[1].base.model.config.target_sizes()
    layers = given[1].base.model.config.layers
    draw = np.random.default_rng(9)
    return {
        target: {"gate": jnp.asarray(draw.normal(size=(count, layers, sizes[target][0], experts)))}
        for target in TARGETS
    }


def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, (2, 11))


def ours(given: Any, banks: list[tuple[Any, float]], client: int) -> np.ndarray:
    """Our logits of two rows under banks at their weights, as one client has them."""
    model, tokens_BT = given[1].base.model, tokens()
    client_B = jnp.full(2, client)
    branches = [
        Branch(own, client_B, jnp.full(2, weight), scale=ALPHA / RANK) for own, weight in banks
    ]
    position_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    mask = causal_mask(jnp.ones_like(tokens_BT))
    hidden_BTD, _ = model.hidden(tokens_BT, position_BT, mask, tuple(branches))
    return np.asarray(model.logits(hidden_BTD))


def logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model(input_ids=torch.tensor(tokens())).logits.float().numpy()


def theirs(out: Path, place: str) -> np.ndarray:
    base = AutoModelForCausalLM.from_pretrained(str(out / "base"), dtype=torch.float32)
    return logits(PeftModel.from_pretrained(base, str(out / place)).eval())


def written(given: Any, adapters: Adapters, out: Path, **asked: Any) -> Trained:
    trained = Trained(given[0], given[1], adapters, 3, None)
    export(trained, out, mixed=asked.get("mixed"), merged=asked.get("merged"))
    check(trained, out)
    return trained


def places(out: Path) -> set[str]:
    return {p.parent.relative_to(out).as_posix() for p in out.rglob("adapter_config.json")}


def close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_factors_and_a_residual_whose_rank_differs_by_target(given: Any, tmp_path: Path):
    """As FedEx-LoRA answers: ranks 4 + 6 on q_proj, 4 + 1 on down_proj, all at the run's scale."""
    whole_1 = side_by_side([bank(given, 1), bank(given, 1, (6, 1), seed=1)])
    own_C = bank(given, 3, seed=2)
    adapters = Adapters(whole_1, own_C, ALPHA / RANK)
    written(given, adapters, tmp_path / "out", mixed=0.25, merged="ben:0.25")
    settings = json.loads((tmp_path / "out/global/adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (10, 15)
    assert settings["rank_pattern"] == {"down_proj": 5}
    assert settings["alpha_pattern"] == {"down_proj": 7.5}
    close(theirs(tmp_path / "out", "global"), ours(given, [(whole_1, 1.0)], 0))
    both = ours(given, [(whole_1, 0.75), (own_C, 0.25)], 1)
    close(theirs(tmp_path / "out", "clients/ben-mixed"), both)
    full = AutoModelForCausalLM.from_pretrained(str(tmp_path / "out/merged"), dtype=torch.float32)
    close(logits(full.eval()), both)
    card = (tmp_path / "out/global/README.md").read_text()
    assert "LoRA of rank 10 at most (5 on down_proj, 10 on q_proj; the scale is the same)" in card


def test_what_the_server_sends_each_client_alone(given: Any, tmp_path: Path):
    """As FlexLoRA and FedALT answer: padded to the largest rank; nothing of it is in global/."""
    shared_C = bank(given, 3)
    ranks = {"anna": 4, "ben": 2, "cleo": 1}
    for c, rank in enumerate(ranks.values()):
        for pair in shared_C.values():
            pair["a"] = pair["a"].at[c, :, :, rank:].set(0.0)
            pair["b"] = pair["b"].at[c, :, rank:].set(0.0)
    own_C = bank(given, 3, seed=1)
    adapters = Adapters(shared_C, own_C, ALPHA / RANK)
    out = tmp_path / "out"
    written(given, adapters, out, mixed=0.5, merged="cleo-shared")
    assert not (out / "global").exists()
    assert places(out) == {
        f"clients/{name}{suffix}" for name in NAMES for suffix in ("", "-shared", "-mixed")
    }
    for c, (name, rank) in enumerate(ranks.items()):
        settings = json.loads((out / f"clients/{name}-shared/adapter_config.json").read_text())
        assert (settings["r"], settings["lora_alpha"]) == (rank, ALPHA * rank / RANK)
        close(theirs(out, f"clients/{name}-shared"), ours(given, [(shared_C, 1.0)], c))
    # Unequal ranks, 2 and 4, as one of 6.
    close(theirs(out, "clients/ben-mixed"), ours(given, [(shared_C, 0.5), (own_C, 0.5)], 1))
    assert json.loads((out / "clients/ben-mixed/adapter_config.json").read_text())["r"] == 6
    full = AutoModelForCausalLM.from_pretrained(str(out / "merged"), dtype=torch.float32)
    close(logits(full.eval()), ours(given, [(shared_C, 1.0)], 2))
    assert (out / "clients/ben-shared/adapter_model.safetensors").stat().st_mode & 0o077 == 0
    with pytest.raises(UserError, match="merged: feddpa_t has no global adapter; name a client"):
        make_plan(Trained(given[0], given[1], adapters, 3, None), mixed=None, merged="global")


def test_a_shared_factor_beside_a_clients_own(given: Any, tmp_path: Path):
    """As FedSA-LoRA answers: A of all clients, B each one's."""
    a_1, b_C = bank(given, 1), bank(given, 3, seed=1)
    own_C = {t: {"a": a_1[t]["a"], "b": b_C[t]["b"]} for t in TARGETS}
    out = tmp_path / "out"
    written(given, Adapters(None, own_C, ALPHA / RANK), out)
    assert places(out) == {f"clients/{name}" for name in NAMES}
    close(theirs(out, "clients/ben"), ours(given, [(own_C, 1.0)], 1))
    assert (
        "Its A is the server's, its B the client's." in (out / "clients/ben/README.md").read_text()
    )


def test_a_mix_with_the_bare_base(given: Any, tmp_path: Path):
    """As FedSA-LoRA mixes: what is shared is an adapter of no targets."""
    own_C, out = bank(given, 3), tmp_path / "out"
    written(given, Adapters({}, own_C, ALPHA / RANK), out, mixed=0.25, merged="ben:0.25")
    assert places(out) == {f"clients/{name}{end}" for name in NAMES for end in ("", "-mixed")}
    close(theirs(out, "clients/ben-mixed"), ours(given, [(own_C, 0.25)], 1))
    full = AutoModelForCausalLM.from_pretrained(str(out / "merged"), dtype=torch.float32)
    close(logits(full.eval()), ours(given, [(own_C, 0.25)], 1))
    with pytest.raises(UserError, match="merged: feddpa_t has no global adapter"):
        make_plan(
            Trained(given[0], given[1], Adapters({}, own_C, 1.0), 3, None),
            mixed=None,
            merged="global",
        )


def test_a_mode_of_the_methods_own(given: Any, tmp_path: Path):
    """As FDLoRA's fused adapters; and one that all clients share."""
    fused_C, all_1 = bank(given, 3), bank(given, 1, seed=1)
    others = {"fused": fused_C, "both": all_1}
    out = tmp_path / "out"
    written(given, Adapters(None, None, ALPHA / RANK, others), out, merged="both")
    assert places(out) == {"both", *(f"clients/{name}-fused" for name in NAMES)}
    close(theirs(out, "clients/cleo-fused"), ours(given, [(fused_C, 1.0)], 2))
    close(theirs(out, "both"), ours(given, [(all_1, 1.0)], 0))
    assert (out / "both/adapter_model.safetensors").stat().st_mode & 0o077
    assert "in the mode `fused`" in (out / "clients/cleo-fused/README.md").read_text()


@pytest.fixture(scope="module")
def routed(given: Any, tmp_path_factory) -> tuple[Any, Trained, Path]:
    """As FedALT answers: a rest-of-world expert, one's own, and a gate on the map's input."""
    parts = [bank(given, 3), bank(given, 3, seed=1)]
    gated_C = side_by_side(parts, gate(given, 3, 2))
    out = tmp_path_factory.mktemp("routed") / "out"
    adapters = Adapters(parts[0], parts[1], ALPHA / RANK, {"gate": gated_C})
    return gated_C, written(given, adapters, out), out


def test_a_routed_adapter_with_transformers_and_peft_alone(given: Any, routed: Any):
    gated_C, _, out = routed
    example = runpy.run_path(str(EXAMPLE))
    for c, name in enumerate(NAMES):
        model, _, _ = example["load"](out / f"clients/{name}-gate", str(out / "base"))
        close(logits(model), ours(given, [(gated_C, 1.0)], c))
    halves = {t: {**own, "gate": 0 * own["gate"]} for t, own in gated_C.items()}
    routes = np.abs(ours(given, [(gated_C, 1.0)], 0) - ours(given, [(halves, 1.0)], 0))
    assert routes.max() > 1e-2


@pytest.mark.parametrize("kind", ROUTERS)
@pytest.mark.parametrize("biased", [False, True])
def test_every_kind_of_router(given: Any, tmp_path: Path, kind: str, biased: bool):
    """Of 4 experts one is not there; with a bias, the slots are not even either."""
    experts, absent = 4, 2
    slots = experts if kind == "gate" else 2 * experts - 1
    # Of the first slots of the other kinds, one for each expert leads to the own one.
    missing = [absent] if kind == "gate" else [experts - 1, experts - 1 + absent]
    routers = {t: {kind: leaves["gate"]} for t, leaves in gate(given, 3, slots).items()}
    bias_S = np.linspace(-0.4, 0.4, slots) * biased
    bias_S[missing] = NO_SLOT
    layers = given[1].base.model.config.layers
    for leaves in routers.values():
        leaves["bias"] = jnp.asarray(np.tile(bias_S, (3, layers, 1)), jnp.float32)
    parts = [bank(given, 3, seed=k) for k in range(experts)]
    if kind != "gate":
        # As FedLEASE has them: the last one is not there.
        parts = parts[:absent] + parts[absent + 1 :] + [parts[absent]]
        missing[1] = slots - 1
        bias_S = np.where(bias_S == NO_SLOT, 0.1, bias_S)
        bias_S[missing] = NO_SLOT
        for leaves in routers.values():
            tiled = np.tile(bias_S if biased else bias_S * (bias_S == NO_SLOT), (3, layers, 1))
            leaves["bias"] = jnp.asarray(tiled, jnp.float32)
    routed_C = side_by_side(parts, routers)
    out = tmp_path / "out"
    written(given, Adapters(None, None, ALPHA / RANK, {"own": routed_C}), out)
    folder = out / "clients/ben-own"
    assert len(list(folder.glob("expert_*"))) == experts - 1
    names = load_file(folder / "router.safetensors").keys()
    assert any(name.endswith(".bias") for name in names) == biased
    model, about, _ = runpy.run_path(str(EXAMPLE))["load"](folder, str(out / "base"))
    assert about["kind"] == kind
    close(logits(model), ours(given, [(routed_C, 1.0)], 1))
    assert EQUATIONS[kind] in (folder / "README.md").read_text()


def test_the_example_is_short():
    assert len(EXAMPLE.read_text().splitlines()) < 60
    assert ROUTERS.keys() == EQUATIONS.keys()


def test_what_a_routed_folder_holds_and_tells(routed: Any):
    folder = routed[2] / "clients/ben-gate"
    files = {"README.md", "feddpa.json", "router.json", "router.safetensors"}
    assert {p.name for p in folder.iterdir()} == {*files, "expert_0", "expert_1"}
    card = " ".join((folder / "README.md").read_text().split())
    assert "y = W x + sum over k of share_k(x) * (alpha_k / r_k) * B_k A_k x" in card
    assert EQUATIONS["gate"] in card and "examples/routed_adapter.py" in card
    listed = json.loads((folder / "feddpa.json").read_text())["files"]
    assert {"router.json", "router.safetensors"} < listed.keys()
    assert (folder / "router.safetensors").stat().st_mode & 0o077 == 0
    gate_SD = load_file(folder / "router.safetensors")["model.layers.1.self_attn.q_proj"]
    assert gate_SD.shape == (2, 32)


@pytest.mark.parametrize("name", ["router.safetensors", "router.json", "expert_1"])
def test_a_changed_routed_adapter_is_found(routed: Any, name: str):
    _, trained, out = routed
    file = out / "clients/ben-gate" / name
    if name == "expert_1":
        file /= "adapter_model.safetensors"
    kept = file.read_bytes()
    if name == "router.json":
        file.write_text(kept.decode().replace('"expert_0"', '"expert_9"'))
    else:
        tensors = load_file(file)
        first = sorted(tensors)[0]
        save_file({**tensors, first: tensors[first] * 1.5}, file, metadata={"format": "pt"})
    try:
        with pytest.raises(UserError, match=r"ben-gate.*export again"):
            check(trained, out)
    finally:
        file.write_bytes(kept)
    check(trained, out)


def test_what_cannot_be(given: Any, routed: Any):
    gated_C, trained, _ = routed
    with pytest.raises(UserError, match="merged: ben-gate is routed"):
        make_plan(trained, mixed=None, merged="ben-gate")
    only = Adapters(gated_C, gated_C, 1.0)
    with pytest.raises(UserError, match="mixed: feddpa_t has routed adapters"):
        make_plan(Trained(given[0], given[1], only, 0, None), mixed=0.5, merged=None)
    some = {**gated_C, "q_proj": {n: x for n, x in gated_C["q_proj"].items() if n != "gate"}}
    with pytest.raises(UserError, match="some adapted maps are routed"):
        make_plan(
            Trained(given[0], given[1], Adapters(None, some, 1.0), 0, None), mixed=None, merged=None
        )
    config, prepared = given
    twin = prepared._replace(
        federation=dataclasses.replace(
            prepared.federation,
            clients=tuple(
                Client(n, c.train)
                for n, c in zip(("a", "a-gate", "b"), prepared.federation.clients, strict=True)
            ),
        )
    )
    with pytest.raises(UserError, match="clients/a-gate is another client's folder; rename"):
        make_plan(Trained(config, twin, trained.adapters, 0, None), mixed=None, merged=None)


def test_the_merged_weights_by_hand(given: Any):
    """W + alpha / rank * A B of the mode's adapter, at its own rank."""
    fused_C = bank(given, 3)
    trained = Trained(
        given[0], given[1], Adapters(None, None, ALPHA / RANK, {"fused": fused_C}), 0, None
    )
    out = make_plan(trained, mixed=None, merged="ben-fused").models["merged"]
    kernel = jnp.zeros((32, 32))
    found = out.change(ALPHA / RANK)("layers.1.attention.q_proj.kernel", kernel)
    pair = fused_C["q_proj"]
    expected = merge(kernel, [(pair["a"][1, 1], pair["b"][1, 1], 1.0)], scale=ALPHA / RANK)
    np.testing.assert_array_equal(found, expected)
    assert out.private
