"""Runs among a population's clients: the bits of a run in memory, and folders that stay small."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import feddpa_jax as fd
from feddpa_jax.data import digest
from feddpa_jax.data.token_file import TokenizedClients
from feddpa_jax.evaluate import groups
from feddpa_jax.run import client_files
from feddpa_jax.types import UserError, client_id

pytestmark = pytest.mark.usefixtures("shared_steps")

CLIENTS = 9
# Files of a checkpoint with a time or a path.
TIMED = ("record.json", "manifest.json", "_CHECKPOINT_METADATA", "commit_success.txt")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDDPA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / f"data-{os.getuid()}"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "flat.jsonl"
    lines = [
        {"client": f"u{c}", "instruction": f"Say {n}.", "output": f"{n + c}", "task": f"t{c % 2}"}
        for n in range(4)
        for c in range(CLIENTS)
    ]
    made.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return made


def configured(file: Path, cache: str, method: str = "feddpa_t", **data) -> fd.Config:
    return fd.Config(
        model={"path": "tiny"},
        data={"path": f"hf:{file}", "cache": cache, "max_length": 64, "validation": 1, **data},
        lora={"rank": 2},
        fed={
            "method": method,
            "rounds": 2,
            "local_epochs": 1,
            "batch_size": 4,
            "micro_batch_size": None,
            "keep_checkpoints": 1,
            "clients_per_step": 2,
        },
        eval={"metrics": ["nll"]},
    )


def files_of(run: Path) -> dict[str, bytes]:
    """What a run wrote, without times, and without what says where its data were."""
    found = {}
    for path in sorted(p for p in run.rglob("*") if p.is_file()):
        name = path.relative_to(run).as_posix()
        if "checkpoints/" in name and path.name not in TIMED:
            found[name] = path.read_bytes()
    return found


def test_the_bits_do_not_depend_on_the_cache(tmp_path, file):
    runs = []
    for cache in ("off", "on", "on"):
        runs.append(tmp_path / f"{cache}{len(runs)}")
        experiment = fd.Experiment.from_config(configured(file, cache), run_dir=runs[-1])
        assert isinstance(experiment.prepared.training, TokenizedClients) == (cache == "on")
        experiment.train()
    for other in runs[1:]:
        assert files_of(runs[0]) == files_of(other) and len(files_of(other)) > 9
    # A run in memory goes on opened, and the other way round.
    for cache, run in zip(("on", "off"), runs, strict=False):
        again = fd.Experiment.from_config(configured(file, cache), run_dir=run)
        assert list(again.rounds()) == []


@pytest.mark.parametrize("named", [4096, 3])
def test_data_that_changed_are_refused(tmp_path, file, named, monkeypatch):
    monkeypatch.setattr(digest, "NAMED", named)
    run = tmp_path / "run"
    fd.Experiment.from_config(configured(file, "on"), run_dir=run).train()
    # In memory the run is the same.
    fd.Experiment.from_config(configured(file, "off"), run_dir=run)
    record = json.loads((run / "checkpoints" / "00001" / "record.json").read_text())
    assert (len(record["clients"]), len(record["data"])) == ((9, 9) if named > 9 else (2, 1))
    file.write_text(file.read_text().replace("Say 2.", "Say 7."))
    for cache in ("on", "off"):
        who = "u[0-9]" if named > 9 else "some client;"
        with pytest.raises(UserError, match=f"training data changed since the run began: {who}"):
            fd.Experiment.from_config(configured(file, cache), run_dir=run)
    file.write_text(file.read_text().replace('"u8"', '"v8"'))
    with pytest.raises(UserError, match="does not fit: its clients"):
        fd.Experiment.from_config(configured(file, "on"), run_dir=run)


def test_no_folder_holds_all_clients(tmp_path, file, monkeypatch):
    # Nothing is held out, so no round is the best, which would be kept too.
    plain, config = tmp_path / "plain", configured(file, "on", "fedsa_lora", validation=0)
    fd.Experiment.from_config(config, run_dir=plain).train()
    monkeypatch.setattr("feddpa_jax.run.beginning.MANY", 3)
    sharded = tmp_path / "sharded"
    for left in ([0], [1]):
        some = fd.Experiment.from_config(config, run_dir=sharded).rounds()
        assert next(iter(some)).number == left[0]
        some.close()
    clients = sharded / "checkpoints" / "clients"
    own = {path.parent.name for path in clients.rglob("*.safetensors")}
    assert all(len(path.name) == 3 for path in clients.iterdir()) and len(own) == CLIENTS
    # One checkpoint is kept, and with it the last file of each client.
    assert sorted(path.stem for path in clients.rglob("*.safetensors")) == ["00001"] * CLIENTS
    by_client = {path.parent.name: path.read_bytes() for path in clients.rglob("*.safetensors")}
    for path in (plain / "checkpoints" / "clients").rglob("*.safetensors"):
        assert by_client[path.parent.name] == path.read_bytes()
    _ = fd.Experiment.open(sharded).adapters
    # A damaged file is found in its shard.
    next(clients.rglob("*.safetensors")).write_bytes(b"")
    opened = fd.Experiment.open(sharded)
    with pytest.raises(UserError, match="damaged"):
        _ = opened.adapters


def test_flat_folders_of_many_clients_go_on(tmp_path, file, monkeypatch):
    """Earlier versions had all clients in one folder, however many there were."""
    run, config = tmp_path / "run", configured(file, "on", "fedsa_lora")
    next(iter(fd.Experiment.from_config(config, run_dir=run).rounds()))
    monkeypatch.setattr(digest, "NAMED", 3)
    monkeypatch.setattr("feddpa_jax.run.beginning.MANY", 3)
    experiment = fd.Experiment.from_config(config, run_dir=run)
    assert [done.number for done in experiment.rounds()] == [1]


def test_shards_of_a_name_do_not_change():
    files = client_files.ClientFiles(Path("x"), 1, sharded=True)
    assert files.path("anna", 3).as_posix() == "x/eb7/anna/00003.safetensors"


def test_damaged_tokens_are_written_anew(tmp_path, file, cache):
    run = fd.Experiment.from_config(configured(file, "on"))
    (entry,) = [
        place for place in cache.iterdir() if place.is_dir() and place.name.startswith("tokens-")
    ]
    content = bytearray((entry / "tokens.bin").read_bytes())
    content[len(content) // 2] ^= 1
    before = [run.prepared.training[c] for c in range(CLIENTS)]
    with (entry / "tokens.bin").open("r+b") as raw:
        raw.write(content)
    with pytest.raises(UserError, match="damaged; start the command again"):
        list(run.prepared.training)
    again = fd.Experiment.from_config(configured(file, "on")).prepared.training
    for own, other in zip(before, again, strict=True):
        for one, two in zip(own, other, strict=True):
            assert one.prompt_length == two.prompt_length
            np.testing.assert_array_equal(one.tokens_T, two.tokens_T)


@pytest.mark.parametrize("name", ["first.npy", "clients.npy"])
def test_tokens_with_a_damaged_header_are_written_anew(file, cache, name):
    before = fd.Experiment.from_config(configured(file, "on")).prepared.training
    (entry,) = cache.glob("tokens-*/")
    content = (entry / name).read_bytes()
    (entry / name).write_bytes(content.replace(b"NUMPY", b"NUMPX"))
    with pytest.raises(
        UserError, match=rf"not whole \({name} is damaged\); start the command again"
    ):
        fd.Experiment.from_config(configured(file, "on"))
    again = fd.Experiment.from_config(configured(file, "on")).prepared.training
    assert len(again) == len(before) and (entry / name).read_bytes() == content


def test_conversations_are_what_they_are_in_memory(tmp_path):
    file = tmp_path / "talks.jsonl"
    turns = [("user", "First?"), ("assistant", "Yes."), ("user", "Then?"), ("assistant", "No.")]
    messages = [{"role": role, "content": text} for role, text in turns]
    template = tmp_path / "talk.jinja"
    template.write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
    )
    lines = [{"client": name, "messages": messages} for name in ("a", "a", "b", "b")]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    loaded, found = (
        fd.Experiment.from_config(configured(file, cache, template=str(template))).prepared
        for cache in ("off", "on")
    )
    for own, other in zip(loaded.training, found.training, strict=True):
        assert own[0].trained_T is not None and own[0].trained_T.sum() > 4
        for one, two in zip(own, other, strict=True):
            np.testing.assert_array_equal(one.trained_T, two.trained_T)
            np.testing.assert_array_equal(one.tokens_T, two.tokens_T)
            assert one.prompt_length == two.prompt_length
    assert loaded.federation.clients == tuple(found.federation.clients)


def test_tokens_depend_on_all_that_makes_them(file, cache):
    changes: list[dict[str, Any]] = [{}, {"max_length": 48}, {"encoding": "joint"}]
    for change in [*changes, {"validation": 2}]:
        fd.Experiment.from_config(configured(file, "on", **change))
    assert len(list(cache.glob("tokens-*/tokens.json"))) == 4
    fd.Experiment.from_config(configured(file, "on"))
    assert len(list(cache.glob("tokens-*/tokens.json"))) == 4


def test_tokens_that_a_model_has_no_row_for_are_refused(file, cache):
    """Models may share a tokenizer, and differ in the rows that they have."""
    run = fd.Experiment.from_config(configured(file, "on"))
    tokenizer = run.prepared.base.tokenizer
    tokenizer._without_row = frozenset(tokenizer.encode("y"))
    try:
        with pytest.raises(UserError, match="the model has no embedding for"):
            fd.Experiment.from_config(configured(file, "on"))
    finally:
        tokenizer._without_row = frozenset()


def test_one_client_of_many(tmp_path, file, cache):
    run = tmp_path / "run"
    fd.Experiment.from_config(configured(file, "on"), run_dir=run).train()
    one = fd.Experiment.open(run, only="u5")
    assert [bool(own) for own in one.prepared.training] == [c == 5 for c in range(CLIENTS)]
    assert one.generate("u5", "Say 1.") == fd.Experiment.open(run).generate("u5", "Say 1.")
    with pytest.raises(UserError, match="no 'nobody' in this run; it has u0, u1"):
        fd.Experiment.open(run, only="nobody")


def test_the_laboratory_looks_at_a_part_of_a_population(file, monkeypatch):
    experiment = fd.Experiment.from_config(configured(file, "on", "ditto"))
    part = experiment.prepared.of([7, 2])
    assert part.names == ("u7", "u2") and part.counts == experiment.prepared.counts
    loaded = fd.Experiment.from_config(configured(file, "off", "ditto")).prepared
    assert loaded.of([7, 2]).counts == (loaded.counts[7], loaded.counts[2])


def test_a_sample_of_clients_is_evaluated(tmp_path, monkeypatch):
    data = fd.load_federation("sample", max_train=3, max_test=1)
    base = fd.load_base("tiny")
    fed = {"rounds": 1, "local_epochs": 1, "batch_size": 4, "micro_batch_size": None}
    run = fd.Experiment(base, data, fd.Config(fed=fed, eval={"metrics": ["nll"]}))
    run.train()
    everyone = run.evaluate()
    config = run.config
    run.config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, clients=3))
    found = run.evaluate()
    run.config = config
    members = groups.evaluated(data.names, 3, 0)
    draws = {name: np.random.default_rng([0, client_id(name), 4]).random() for name in data.names}
    assert members is not None
    assert {data.names[c] for c in members} == set(sorted(draws, key=draws.__getitem__)[:3])
    assert members is not None and [c.name for c in found.setting.clients] == [
        data.names[c] for c in members
    ]
    for mode in everyone.modes:
        np.testing.assert_allclose(
            found.results[mode].scores_CI["nll"],
            everyone.results[mode].scores_CI["nll"][members],
            rtol=2e-6,
        )
    # In groups all is as at once.
    monkeypatch.setattr(groups, "AT_ONCE", 3)
    monkeypatch.setattr("feddpa_jax.outcome.AT_ONCE", 3)
    parts = run.evaluate()
    assert [c.name for c in parts.setting.clients] == list(data.names)
    for mode in everyone.modes:
        for field in ("local_CI", "global_CI"):
            np.testing.assert_allclose(
                getattr(parts.results[mode].weights, field),
                getattr(everyone.results[mode].weights, field),
                atol=2e-6,
            )
        assert parts["nll"][mode].p.value == pytest.approx(everyone["nll"][mode].p.value, rel=2e-6)
    answer = run.generate(data.names[5], "Say hello.")
    monkeypatch.undo()
    assert answer == run.generate(data.names[5], "Say hello.")
