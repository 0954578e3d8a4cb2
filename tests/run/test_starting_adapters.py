"""Runs that start from PEFT folders: the adapters are there, or the reason why not."""

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feddpa_jax.adapters.lora import Adapter
from feddpa_jax.cli.program import main
from feddpa_jax.config import Config, load_config
from feddpa_jax.federated.clients import ClientParts, MemoryStore
from feddpa_jax.federated.method import FedState
from feddpa_jax.hf.peft_format import write_adapter
from feddpa_jax.hf.record import list_files
from feddpa_jax.run.client_files import ClientFiles
from feddpa_jax.run.inputs import Prepared, make_lora, prepare
from feddpa_jax.run.starting_adapters import start_from
from feddpa_jax.types import UserError

SETTINGS = [
    *("--model.path", "tiny", "--model.dtype", "float32", "--data.max_train", "2"),
    *("--data.max_test", "1", "--lora.rank", "2", "--lora.alpha", "6"),
]


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepare(load_config(None, SETTINGS))


def config_of(**init: Any) -> Config:
    plain = load_config(None, SETTINGS)
    return dataclasses.replace(plain, init=dataclasses.replace(plain.init, **init))


def adapter(prepared: Prepared, seed: int) -> Adapter:
    fresh = make_lora(config_of(), prepared).fresh(jax.random.key(seed))
    return jax.tree.map(lambda leaf: leaf + seed / 100, fresh)


def write(folder: Path, adapter: Adapter, prepared: Prepared, alpha: float = 6.0) -> str:
    config = prepared.base.model.config
    write_adapter(folder, adapter, config, alpha=alpha, dropout=0.0, base="base")
    return str(folder)


def bank(adapter: Adapter, count: int = 8) -> Adapter:
    return jax.tree.map(lambda leaf: jnp.stack([leaf] * count), adapter)


def fresh_state(prepared: Prepared, tmp_path: Path) -> FedState:
    zero = jax.tree.map(jnp.zeros_like, adapter(prepared, 0))
    files = ClientFiles(tmp_path / "clients", cached=1)
    fresh = {"local": lambda members: bank(zero, len(members))}
    return FedState({"global": zero}, ClientParts(prepared.names, files, ("local",), fresh))


def test_nothing_named_changes_nothing(prepared: Prepared, tmp_path: Path):
    fresh = fresh_state(prepared, tmp_path)
    assert start_from(config_of(), prepared, fresh) == fresh


def test_both_adapters(tmp_path: Path, prepared: Prepared):
    global_ = write(tmp_path / "global", adapter(prepared, 1), prepared)
    for number, name in enumerate(prepared.names):
        write(tmp_path / "clients" / name, adapter(prepared, 2 + number), prepared)
    config = config_of(global_adapter=global_, local_adapter=str(tmp_path / "clients"))
    state = start_from(config, prepared, fresh_state(prepared, tmp_path))
    chex.assert_trees_all_equal(state.server["global"], adapter(prepared, 1))
    for number in range(len(prepared.names)):
        own = jax.tree.map(lambda leaf, at=number: leaf[at], state.clients.all()["local"])
        chex.assert_trees_all_equal(own, adapter(prepared, 2 + number))


def test_one_local_adapter_for_all(tmp_path: Path, prepared: Prepared):
    folder = write(tmp_path / "one", adapter(prepared, 3), prepared)
    state = start_from(config_of(local_adapter=folder), prepared, fresh_state(prepared, tmp_path))
    chex.assert_trees_all_equal(state.clients.all()["local"], bank(adapter(prepared, 3)))
    assert not jax.tree.leaves(state.server["global"])[0].any()


def test_mistakes(tmp_path: Path, prepared: Prepared):
    good = write(tmp_path / "good", adapter(prepared, 1), prepared)
    fresh = fresh_state(prepared, tmp_path)

    def refused(message: str, state: FedState = fresh, config: Config | None = None, **init: Any):
        with pytest.raises(UserError, match=message) as caught:
            start_from(config or config_of(**init), prepared, state)
        assert "\n" not in str(caught.value)

    refused("init.global_adapter: .*nowhere: no such folder", global_adapter="nowhere")
    refused("init.local_adapter: .* has none for client 'client_0'", local_adapter=str(tmp_path))
    refused(
        "init.local_adapter: feddpa_t starts without a local adapter; use init.global_adapter",
        fresh._replace(clients=ClientParts(prepared.names, MemoryStore())),
        local_adapter=good,
    )
    other = write(tmp_path / "alpha", adapter(prepared, 1), prepared, alpha=8.0)
    refused(
        r"has alpha 8.0 \(lora.alpha is 6.0\); to use it: .*--lora.alpha 8.0", global_adapter=other
    )
    settings = ["--lora.rank", "4", "--lora.targets", "[k_proj]", "--init.global_adapter", good]
    refused(
        r"has rank 2 \(lora.rank is 4\); targets q_proj, v_proj .*: --lora.rank 2 --lora.alpha 6.0 "
        r"--lora.targets '\[q_proj, v_proj\]'",
        config=load_config(None, [*SETTINGS, *settings]),
    )
    record = {"base": {"path": "other-model", "fingerprint": "0" * 16}}
    file = tmp_path / "good" / "feddpa.json"
    file.write_text(json.dumps(record))
    refused(r"was trained on another base \(other-model, 0000", global_adapter=good)
    for damaged in ("{}", '{"base": 1}', '{"base": {"fingerprint": null}}'):
        file.write_text(damaged)
        refused(r"feddpa.json does not say which base .*; export the adapter", global_adapter=good)
    for damaged in ("", "{", "[]", '{"base": '):
        file.write_text(damaged)
        refused(r"init.global_adapter: .*feddpa.json", global_adapter=good)
    base = {"path": "tiny", "fingerprint": prepared.base.fingerprint}
    file.write_text(json.dumps({"base": base, "files": list_files(file.parent)}))
    start_from(config_of(global_adapter=good), prepared, fresh)
    weights = file.with_name("adapter_model.safetensors")
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused(r"adapter_model.safetensors: has changed .*export again, or", global_adapter=good)
    weights.write_bytes(content)
    file.unlink()
    start_from(config_of(global_adapter=good), prepared, fresh)


REMEDIES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "rank": (["--lora.rank", "4"], {}),
    "alpha": (["--lora.alpha", "0.1"], {"lora_alpha": 0.30000000000000004}),
    "tiny": (["--lora.alpha", "3"], {"lora_alpha": 1e-7}),
    "huge": (["--lora.alpha", "3"], {"lora_alpha": 1.2345678901234567e29}),
    "targets": (["--lora.targets", "[k_proj]"], {}),
    "rank_stabilized": ([], {"use_rslora": True, "lora_alpha": 64}),
    "everything": (
        ["--lora.rank", "3", "--lora.targets", "[up_proj, q_proj]"],
        {"use_rslora": True, "lora_alpha": 7.1},
    ),
}


@pytest.mark.parametrize("name", REMEDIES)
def test_the_printed_remedy_works(tmp_path: Path, prepared: Prepared, name: str):
    """The words after "to use it", as a shell hands them over: accepted, and with that scale."""
    wanted, changes = REMEDIES[name]
    folder = write(tmp_path / "a", adapter(prepared, 1), prepared)
    file = tmp_path / "a" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    command = [*SETTINGS, *wanted, "--init.global_adapter", folder]
    fresh = fresh_state(prepared, tmp_path)
    with pytest.raises(UserError) as caught:
        start_from(load_config(None, command), prepared, fresh)
    remedy = shlex.split(str(caught.value).partition("; to use it: ")[2])
    assert remedy[::2] == ["--lora.rank", "--lora.alpha", "--lora.targets"]
    config = load_config(None, [*command, *remedy])
    chex.assert_trees_all_equal(
        start_from(config, prepared, fresh).server["global"], adapter(prepared, 1)
    )
    stated = json.loads(file.read_text())
    power = 0.5 if stated["use_rslora"] else 1.0
    assert config.lora.alpha / config.lora.rank == pytest.approx(
        stated["lora_alpha"] / stated["r"] ** power, rel=1e-12
    )


def test_a_run_goes_on_from_an_export(tmp_path: Path, capsys):
    """One round, exported, and one round from there: the first loss goes on where it was."""
    more = ["--fed.rounds", "1", "--fed.local_epochs", "1", "--fed.learning_rate", "0.05"]
    more += ["--data.max_length", "256", "--fed.batch_size", "2", "--fed.micro_batch_size", "null"]

    def train(name: str, *init: str) -> list[float]:
        run = tmp_path / name
        settings = [*SETTINGS, *more, *init]
        assert main(["train", "--run-dir", str(run), "--no-eval", *settings]) == 0
        line = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
        return [loss["first"] for loss in line["phases"]["global"].values()]

    first = train("first")
    out = tmp_path / "out"
    assert main(["export", "--run-dir", str(tmp_path / "first"), "--out", str(out)]) == 0
    init = ["--init.global_adapter", str(out / "global")]
    # Refused first: nothing is left that would block the corrected command.
    command = ["train", "--run-dir", str(tmp_path / "second"), "--no-eval", *SETTINGS, *more]
    assert main([*command, *init, "--lora.alpha", "5"]) == 2
    error = capsys.readouterr().err
    assert "to use it: --lora.rank 2 --lora.alpha 6.0" in error and error.count("\n") == 1
    assert not (tmp_path / "second").exists()
    second = train("second", *init)
    assert np.mean(second) < np.mean(first) - 0.05
    assert (tmp_path / "second/config.yaml").read_text().count("out/global") == 1
