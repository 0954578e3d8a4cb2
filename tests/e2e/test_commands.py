"""The program as a user meets it: whole runs, resuming after a kill, mistakes on one line."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from feddpa_jax.cli.program import main
from feddpa_jax.experiment import Experiment
from feddpa_jax.run.checkpoint import load, rounds_saved
from feddpa_jax.run.client_files import ClientFiles
from feddpa_jax.testing import write_tiny_gguf, write_tiny_hf_folder
from feddpa_jax.types import UserError
from tests.e2e.small_runs import refused

pytestmark = pytest.mark.usefixtures("shared_steps")

SMALL = [
    *("--model.path", "tiny", "--model.dtype", "float32"),
    *("--data.max_length", "256", "--data.max_train", "3", "--data.max_test", "1"),
    *("--lora.rank", "2", "--fed.rounds", "2", "--fed.local_epochs", "1"),
    *("--fed.batch_size", "2", "--fed.micro_batch_size", "null", "--fed.learning_rate", "1e-3"),
    *("--eval.max_new_tokens", "3", "--weighting.support", "2"),
]


def train(folder: Path, *more: str) -> int:
    return main(["train", "--run-dir", str(folder), *SMALL, *more])


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert train(folder) == 0
    return folder


def final_state(folder: Path) -> dict[str, np.ndarray]:
    last = rounds_saved(folder / "checkpoints")[-1]
    found = load(folder / "checkpoints" / f"{last:05d}", {})
    files = ClientFiles(folder / "checkpoints" / "clients", cached=1)
    adapters = {name: files.read(name, saved)["local"] for name, saved in found.clients.items()}
    return {
        f"{side}/{target}/{name}": np.asarray(leaf)
        for side, adapter in {**found.state(), **adapters}.items()
        for target, pair in adapter.items()
        for name, leaf in pair.items()
    }


def test_a_run_leaves_what_the_contract_says(run_dir):
    files = {str(p.relative_to(run_dir)) for p in run_dir.rglob("*") if p.is_file()}
    for name in ("config.yaml", "environment.json", "metrics.jsonl", "eval/summary.json"):
        assert name in files
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [0, 1]
    assert set(lines[0]["phases"]) == {"global"}
    assert set(lines[1]["phases"]) == {"global", "local"}
    # Rank 2 on q [2, 32, 2] + [2, 2, 32] and v [2, 32, 2] + [2, 2, 16], 4 bytes each.
    assert lines[0]["client_bytes_sent"] == 4 * (128 + 128 + 128 + 64)
    assert json.loads((run_dir / "environment.json").read_text())["packages"]["jax"]
    summary = json.loads((run_dir / "eval" / "summary.json").read_text())
    assert set(summary["modes"]) == {"base", "global", "local", "fixed", "instance"}
    instances = (run_dir / "eval" / "instances.jsonl").read_text().splitlines()
    assert len(instances) == 5 * 8 * 8


def test_finished_run_is_left_alone_and_can_be_evaluated_again(run_dir, capsys):
    before = final_state(run_dir)
    assert train(run_dir, "--no-eval") == 0
    assert "resuming" not in capsys.readouterr().err
    after = final_state(run_dir)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    # More test instances do not make it another run.
    more = ["--data.max_test", "2", "--eval.modes", "[global]", "--eval.metrics", "[nll]"]
    assert main(["eval", "--run-dir", str(run_dir), *more]) == 0
    instances = (run_dir / "eval" / "instances.jsonl").read_text().splitlines()
    assert len(instances) == 2 * 8 * 8
    capsys.readouterr()
    assert main(["eval", "--run-dir", str(run_dir), "--eval.metrics", "[nll]"]) == 0
    assert "response NLL" in capsys.readouterr().out


def test_a_relative_run_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train(Path("runs/here"), "--no-eval", "--fed.rounds", "1") == 0
    assert train(Path("runs/here"), "--fed.rounds", "1", "--eval.metrics", "[nll]") == 0
    assert (tmp_path / "runs/here/eval/summary.json").is_file()


def test_generate_answers_and_says_its_weight(run_dir, capsys):
    command = ["generate", "--run-dir", str(run_dir), "--client", "client_3"]
    assert main([*command, "--prompt", "Same question? A / B"]) == 0
    first, *answer = capsys.readouterr().out.splitlines()
    assert first.startswith("client_3, instance: global weight 0.5")
    assert "similarity" in first
    assert answer
    assert main([*command, "--prompt", "Hi", "--mode", "local"]) == 0
    assert "global weight 0.0000, local weight 1.0000" in capsys.readouterr().out


def test_generate_answers_as_an_evaluation_does(run_dir, capsys):
    assert main(["eval", "--run-dir", str(run_dir), "--eval.modes", "[instance]"]) == 0
    capsys.readouterr()
    lines = (run_dir / "eval" / "instances.jsonl").read_text().splitlines()
    found = next(
        line
        for line in map(json.loads, lines)
        if line["mode"] == "instance" and line["client"] == "client_5"
    )
    from feddpa_jax.data.folders import load_federation

    test = load_federation("sample", seed=0, max_train=3, max_test=1).test
    prompt = test[found["index"]].instruction
    command = ["generate", "--run-dir", str(run_dir), "--client", "client_5", "--prompt", prompt]
    assert main(command) == 0
    told, _, answer = capsys.readouterr().out.partition("\n")
    assert f"local weight {found['local_weight']:.4f}" in told
    assert f"similarity {found['similarity']:.4f}" in told
    assert answer == found["prediction"] + "\n"


def test_an_experiment_that_is_opened_for_one_client(run_dir):
    whole = Experiment.open(run_dir)
    one = Experiment.open(run_dir, only="client_3")
    assert one.generate("client_3", "Hi") == whole.generate("client_3", "Hi")
    assert one.weigh("client_3", "Hi") == whole.weigh("client_3", "Hi")
    assert one.weigh("client_3", "Hi") != whole.weigh("client_1", "Hi")
    for work in (one.train, one.evaluate, one.laboratory, lambda: one.weigh("client_1", "Hi")):
        with pytest.raises(UserError, match="opened for 'client_3' alone"):
            work()


def test_a_rule_of_ones_own(run_dir, tmp_path, monkeypatch, capsys):
    rule = "def gate(query_BD, support_BMD):\n    return 0.25 + 0 * query_BD[:, 0]\n"
    (tmp_path / "my_rules.py").write_text(rule, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    command = ["generate", "--run-dir", str(run_dir), "--client", "client_3", "--prompt", "Hi"]
    own = ["--weighting.rule", "my_rules.py:gate", "--weighting.scale", "1"]
    assert main([*command, *own]) == 0
    assert "global weight 0.7500, local weight 0.2500" in capsys.readouterr().out
    refused(capsys, [*command, "--weighting.rule", "my_rules.py:gat"], "'gat'", "gate")
    short = ["eval", "--run-dir", str(run_dir), "--eval.metrics", "[nll]"]
    assert main([*short, "--eval.modes", "[instance]", *own]) == 0
    kept = run_dir / "eval" / "rules"
    assert [file.read_text(encoding="utf-8") for file in kept.iterdir()] == [rule]
    assert main([*short, "--eval.modes", "[global]"]) == 0
    assert not kept.exists()  # What it was evaluated with last.


def test_only_needed_code_is_run(run_dir, tmp_path, monkeypatch, capsys):
    """A run folder may come from somebody else, and its rule's file do anything."""
    received = tmp_path / "received"
    shutil.copytree(run_dir, received)
    rule, marker = received / "rule.py", tmp_path / "marker"
    rule.write_text(
        f"open({str(marker)!r}, 'a').write('x')\n"
        "def gate(query_BD, support_BMD):\n    return 0.25 + 0 * query_BD[:, 0]\n"
    )
    config = received / "config.yaml"
    config.write_text(config.read_text().replace("rule: cosine", f"rule: {rule}:gate"))
    (received / "manifest.json").unlink()  # It has the sum of the other configuration.
    of_run = ["--run-dir", str(received)]
    prompt = [*of_run, "--client", "client_3", "--prompt", "Hi"]
    evaluate = ["eval", *of_run, "--eval.metrics", "[nll]", "--eval.modes"]
    for command in (
        ["generate", *prompt, "--mode", "global"],
        [*evaluate, "[base, global, local, fixed]"],
        ["export", *of_run, "--out", str(tmp_path / "out")],
        ["report", str(received), "--out", str(tmp_path / "page.html")],
        ["data", "--config", str(config)],
        ["train", "--config", str(config), *of_run, "--no-eval"],
        ["train", "--config", str(config), *of_run, "--eval.modes", "[local]"],
    ):
        assert main(command) == 0
        assert "running the code" not in capsys.readouterr().out
        assert not marker.exists(), command
    # Refused for want of held-out examples, which is after the rules were looked at.
    refused(capsys, ["weigh", *of_run, "--rules", "cosine"], "held nothing out")
    assert not marker.exists()
    for command in (["generate", *prompt], [*evaluate, "[instance]"]):
        assert main(command) == 0
        assert f"weighting.rule: running the code in {rule}" in capsys.readouterr().out
        assert marker.exists()


def start(folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "feddpa_jax", "train", "--run-dir", str(folder), *SMALL]
    command += ["--no-eval", "--fed.rounds", "4"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def lines_in(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def test_killed_in_any_round_and_resumed_to_the_same_bits(tmp_path):
    whole = start(tmp_path / "whole")
    assert whole.wait(timeout=300) == 0
    killed = tmp_path / "killed"
    kills = 0
    for wanted in (0, 1):
        process = start(killed)
        # Within round `wanted`, at a moment that differs from machine to machine.
        deadline = time.monotonic() + 200
        while lines_in(killed) <= wanted and process.poll() is None:
            assert time.monotonic() < deadline
            if wanted == 0 and (killed / "config.yaml").exists():
                time.sleep(1.0)
                break
            time.sleep(0.005)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills == 2
    assert start(killed).wait(timeout=300) == 0
    expected, got = final_state(tmp_path / "whole"), final_state(killed)
    assert expected.keys() == got.keys()
    for name, leaf in expected.items():
        assert leaf.tobytes() == got[name].tobytes(), name
    rounds = [json.loads(line)["round"] for line in (killed / "metrics.jsonl").open()]
    assert rounds == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--lora.rnk", "3"], ["lora.rnk", "lora.rank"]),
        (["--lora.rank", "0"], ["lora.rank"]),
        (["--lora.rank", "x"], ["lora.rank", "'x'"]),
        (["--lora.targets", "[w_proj]"], ["lora.targets", "w_proj"]),
        (["--fed.batch_size", "0"], ["fed.batch_size"]),
        (["--model.path", "no/such/folder"], ["model.path", "no/such/folder"]),
        (["--model.path", "nowhere"], ["model.path", "'nowhere'"]),
        (["--data.path", "/no/data"], ["data.path", "/no/data"]),
        (["--data.max_length", "20"], ["client_0", "data.max_length"]),
        (["--data.max_length", "9999"], ["data.max_length", "4096"]),
        (["--weighting.rule", "cosin"], ["weighting.rule", "cosine"]),
        (["--data.template", "alpaka"], ["data.template", "alpaca_short"]),
        (["--config", "none.yaml"], ["none.yaml"]),
    ],
)
def test_bad_settings(tmp_path, capsys, more, words):
    refused(capsys, ["train", "--run-dir", str(tmp_path / "run"), *SMALL, *more], *words)
    assert not (tmp_path / "run").exists()


def test_bad_commands(tmp_path, capsys, run_dir):
    refused(capsys, ["trian"], "trian")
    refused(capsys, [], "COMMAND")
    refused(capsys, ["train"], "--run-dir")
    refused(capsys, ["eval", "--run-dir", str(tmp_path / "none")], "no run")
    generate = ["generate", "--run-dir", str(run_dir), "--client"]
    refused(capsys, [*generate, "client_9", "--prompt", "x"], "client_9", "client_0")
    refused(capsys, [*generate, "client_1", "--prompt", " "], "--prompt")
    refused(capsys, [*generate, "client_1", "--prompt", "x" * 400], "data.max_length = 256")


def test_run_folder_of_another_configuration(capsys, run_dir, tmp_path):
    command = ["train", "--run-dir", str(run_dir), *SMALL, "--lora.rank", "3"]
    refused(capsys, command, "another configuration", "lora.rank: 2 -> 3")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not touch")
    refused(capsys, ["train", "--run-dir", str(tmp_path / "mine"), *SMALL], "something else")


def test_damaged_checkpoints(capsys, run_dir, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    newest = copy / "checkpoints" / "00001"
    victim = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    victim.write_bytes(victim.read_bytes()[:-7])
    # Training goes back by a round, results do not.
    for command in (["eval"], ["export", "--out", str(tmp_path / "out")]):
        refused(capsys, [*command, "--run-dir", str(copy)], "00001 is damaged", "rerun train")
    assert train(copy, "--no-eval") == 0
    out = capsys.readouterr().out
    assert "damaged" in out
    assert "resuming after 1 of 2 rounds" in out
    whole, again = final_state(run_dir), final_state(copy)
    assert all(whole[name].tobytes() == again[name].tobytes() for name in whole)
    own = copy / "checkpoints/clients/client_2/00001.safetensors"
    own.write_bytes(own.read_bytes()[:-7])
    assert train(copy, "--no-eval") == 0
    assert "clients/client_2/00001.safetensors has changed" in capsys.readouterr().out
    again = final_state(copy)
    assert all(whole[name].tobytes() == again[name].tobytes() for name in whole)
    for number in rounds_saved(copy / "checkpoints"):
        (copy / "checkpoints" / f"{number:05d}" / "manifest.json").write_text("{")
    refused(capsys, ["eval", "--run-dir", str(copy)], "00001 is damaged")
    refused(capsys, ["train", "--run-dir", str(copy), *SMALL], "every checkpoint is damaged")


def test_full_disk_keeps_what_is_there(run_dir, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    shutil.rmtree(copy / "checkpoints" / "00001")
    code = (
        "import resource, sys; from feddpa_jax.cli.program import main;"
        "from feddpa_jax.run.saver import Saver; save = Saver.save\n"
        "def full(*args, **kwargs):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "    return save(*args, **kwargs)\n"
        "Saver.save = full; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "train", "--run-dir", str(copy), *SMALL]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 2, ran.stderr
    assert ran.stderr.count("\n") == 1
    assert "could not be written" in ran.stderr
    assert "round 0 is kept" in ran.stderr
    assert rounds_saved(copy / "checkpoints") == [0]


def test_damaged_models(capsys, tmp_path):
    write_tiny_hf_folder(tmp_path / "hf")
    command = ["train", "--run-dir", str(tmp_path / "run"), *SMALL, "--model.path"]
    weights = tmp_path / "hf" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    refused(capsys, [*command, str(tmp_path / "hf")], "model.safetensors", "cut short")
    weights.write_bytes(whole)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    for change, words in (
        ({"intermediate_size": 48}, ["mlp.", "shape"]),
        ({"num_hidden_layers": 3}, ["layers.2"]),
        ({"model_type": "mamba"}, ["'mamba'", "llama"]),
    ):
        (tmp_path / "hf" / "config.json").write_text(json.dumps(config | change))
        refused(capsys, [*command, str(tmp_path / "hf")], *words)
    write_tiny_gguf(tmp_path / "m.gguf")
    gguf = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(gguf[: len(gguf) - 100])
    refused(capsys, [*command, str(tmp_path / "m.gguf")], "m.gguf", "cut short")


@pytest.mark.parametrize("method", ["feddpa_f", "fedit", "fedlora", "local", "centralized"])
def test_other_methods_run_to_the_end(tmp_path, method):
    folder = tmp_path / method
    assert (
        train(folder, "--fed.method", method, "--fed.rounds", "1", "--eval.metrics", "[nll]") == 0
    )
    summary = json.loads((folder / "eval" / "summary.json").read_text())
    modes = {
        "feddpa_f": ["base", "global", "local", "fixed", "instance"],
        "fedlora": ["base", "global", "local", "fixed", "instance"],
        "fedit": ["base", "global"],
        "centralized": ["base", "global"],
        "local": ["base", "local"],
    }
    assert list(summary["modes"]) == modes[method]
    assert summary["answers_with"] in modes[method]


def test_data_command(capsys, tmp_path):
    assert main(["data", "--make", str(tmp_path / "sample")]) == 0
    capsys.readouterr()
    command = ["data", "--model.path", "tiny", "--data.path", str(tmp_path / "sample")]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "client_7" in out
    assert "192 test instances of 8 tasks" in " ".join(out.split())
    bad = tmp_path / "sample" / "8" / "local_training_2.json"
    bad.write_text(bad.read_text().replace('"output"', '"outpt"', 1))
    refused(capsys, command, "local_training_2.json, record 1", "'output'")


def test_help_and_fields(capsys):
    for command in ([], ["train"], ["eval"], ["generate"], ["data"]):
        with pytest.raises(SystemExit) as leave:
            main([*command, "--help"])
        assert leave.value.code == 0
        assert "feddpa" in capsys.readouterr().out
    assert main(["fields"]) == 0
    assert "fed.local_weight" in capsys.readouterr().out


def test_subprocess_exit_code_and_no_traceback():
    command = [sys.executable, "-m", "feddpa_jax", "train", "--run-dir", os.devnull]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "Traceback" not in ran.stderr
