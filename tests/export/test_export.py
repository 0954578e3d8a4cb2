"""Exports as users take them away: cards, weights, answers, tampering, and the way back in."""

import json
import os
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from feddpa_jax.cli.program import main
from feddpa_jax.config import load_config
from feddpa_jax.export import export_folder
from feddpa_jax.export.contents import Trained
from feddpa_jax.files.escape import terminal
from feddpa_jax.run.checkpoint import rounds_saved

ROOT = Path(__file__).parents[2]
SMALL = [
    *("--model.path", "tiny", "--model.dtype", "float32"),
    *("--data.max_length", "256", "--data.max_train", "3", "--data.max_test", "1"),
    *("--lora.rank", "2", "--lora.alpha", "32", "--lora.targets", "[q_proj, v_proj, down_proj]"),
    *("--fed.rounds", "3", "--fed.local_epochs", "1", "--fed.keep_checkpoints", "1"),
    *("--fed.batch_size", "2", "--fed.micro_batch_size", "null", "--fed.learning_rate", "0.05"),
    *("--eval.max_new_tokens", "6", "--weighting.support", "2"),
]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert main(["train", "--run-dir", str(folder), *SMALL]) == 0
    return folder


def export(run_dir: Path, out: Path, *more: str) -> int:
    return main(["export", "--run-dir", str(run_dir), "--out", str(out), *more])


@pytest.fixture(scope="module")
def exported(run_dir: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("exports") / "whole"
    assert export(run_dir, out, "--mixed", "0.25", "--merged", "client_1:0.5") == 0
    return out


@pytest.fixture
def copied(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def test_what_an_export_holds(exported: Path):
    assert {p.name for p in exported.iterdir()} == {
        *("README.md", "feddpa.json", "global", "clients", "merged", "base")
    }
    names = [f"client_{c}" for c in range(8)]
    assert {p.name for p in (exported / "clients").iterdir()} == {
        *names,
        *(f"{name}-mixed" for name in names),
    }
    assert {p.name for p in (exported / "clients/client_0").iterdir()} == {
        *("README.md", "feddpa.json", "adapter_config.json", "adapter_model.safetensors"),
        *("weighting.json", "weighting.safetensors"),
    }
    settings = json.loads((exported / "clients/client_0-mixed/adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (4, 64)
    assert settings["base_model_name_or_path"] is None
    assert not list(exported.parent.glob(".*"))  # nothing is left beside it


def test_what_a_client_learned_alone_is_for_its_owner_alone(exported: Path):
    private = {f for f in exported.rglob("*.safetensors") if f.stat().st_mode & 0o077 == 0}
    clients = {*(exported / "clients").rglob("*.safetensors")}
    assert private == {*clients, exported / "merged/model.safetensors"}
    assert len(clients) == 3 * 8
    readable = (exported / "README.md").stat().st_mode
    for place in ("global/adapter_model.safetensors", "base/model.safetensors"):
        assert (exported / place).stat().st_mode == readable


def trained_on(path: str, folder: Path | None) -> Trained:
    config = load_config(None, ["--model.path", json.dumps(path)])
    base: Any = SimpleNamespace(folder=folder)
    return Trained(config, cast(Any, SimpleNamespace(base=base)), cast(Any, None), 0, None)


def test_no_path_of_this_machine_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/mine").mkdir(parents=True)
    (tmp_path / "models/mine.gguf").touch()
    hub = Path("cache/snapshots/0")
    cases = {
        ("org/model", hub): ("org/model", "org/model", "org/model"),
        ("models/mine", tmp_path / "models/mine"): (None, "mine", "path/to/mine"),
        (str(tmp_path / "models/mine"), tmp_path / "models/mine"): (None, "mine", "path/to/mine"),
        ("models/mine.gguf", None): (None, "mine.gguf", "base"),
        ("tiny", None): (None, "tiny", "base"),
    }
    for (path, folder), expected in cases.items():
        found = trained_on(path, folder)
        assert (found.base_hub_id, found.base_name, found.base_reference) == expected
    monkeypatch.chdir(tmp_path / "models/mine")
    assert trained_on(".", Path(".")).base_name == "mine"


def test_a_rule_that_an_export_cannot_carry(run_dir: Path, tmp_path: Path, capsys):
    assert export(run_dir, tmp_path / "out", "--weighting.rule", "gate") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "the rule gate needs this package; an export carries cosine, pearson, l2" in said
    assert not list((tmp_path / "out").rglob("weighting.*"))
    assert "Instance-wise" not in (tmp_path / "out/clients/client_0/README.md").read_text()
    assert export(run_dir, tmp_path / "out", "--weighting.rule", "gate", "--check") == 0


def code_of(card: Path) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL)
    return code


def said(capfd, count: int) -> list[str]:
    """The last lines that were printed, as `generate` shows them."""
    return terminal(capfd.readouterr().out).removesuffix("\n").split("\n")[-count:]


@pytest.mark.parametrize(
    ("place", "mode"),
    [
        (".", "global"),
        ("global", "global"),
        ("clients/client_3", "local"),
        ("clients/client_3-mixed", "fixed"),
        ("merged", None),
        ("base", "base"),
    ],
)
def test_code_of_the_cards_gives_our_answers(
    exported: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch, capfd, place: str, mode
):
    monkeypatch.chdir(exported)
    exec(code_of(Path(place, "README.md")), {})
    theirs = said(capfd, 1)
    command = ["generate", "--run-dir", str(run_dir), "--prompt", "Name three colours."]
    client = "client_1" if mode is None else "client_3"
    weight = "0.5" if mode is None else "0.25"
    command += ["--client", client, "--mode", mode or "fixed", "--weighting.fixed", weight]
    assert main(command) == 0
    assert said(capfd, 1) == theirs
    assert theirs[0]


def test_cards_say_what_was_done(exported: Path):
    card = (exported / "clients/client_2/README.md").read_text()
    summary = "client_2's data alone" not in card and "this client's data alone" in card
    assert summary
    for words in (
        "LoRA of rank 2, alpha 32",
        "round 2",
        "seed 0",
        "| client_2 |",
        "| instance * |",
    ):
        assert words in card
    assert "| client_5 |" not in card
    assert "| client_5 |" in (exported / "global/README.md").read_text()


VARIANTS = [
    [],
    ["--weighting.scales", "global", "--weighting.rule", "pearson"],
    ["--weighting.embed_with", "global", "--weighting.pooling", "mean", "--weighting.rule", "l2"],
    ["--weighting.embed_with", "base", "--eval.decoding", "beam", "--eval.beams", "2"],
    ["--weighting.rule", "constant", "--weighting.scale", "0.8"],
]


@pytest.mark.parametrize("more", VARIANTS, ids=lambda more: more[1] if more else "paper")
def test_example_script_weighs_and_answers_as_generate_does(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd, more: list[str]
):
    assert export(run_dir, tmp_path / "out", *more) == 0
    for client, prompt in (("client_3", ["Say hello."]), ("client_6", ["Sum up.", "--input", "a"])):
        asked = ["--client", client, "--prompt", *prompt]
        script = str(ROOT / "examples/instance_weights.py")
        monkeypatch.setattr(sys, "argv", [script, "--export", str(tmp_path / "out"), *asked])
        capfd.readouterr()
        runpy.run_path(script, run_name="__main__")
        theirs = said(capfd, 2)
        assert main(["generate", "--run-dir", str(run_dir), *asked, *more]) == 0
        assert said(capfd, 2) == theirs
        assert re.search(r"local weight [01]\.\d{4}, similarity", theirs[0])


def test_example_script_needs_nothing_of_ours():
    assert "feddpa_jax" not in re.sub(
        r'""".*?"""', "", (ROOT / "examples/instance_weights.py").read_text(), flags=re.DOTALL
    )


def change_tensors(file: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def change_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def scale_one(tensors: dict[str, np.ndarray]) -> None:
    name = next(name for name in tensors if "layers.1" in name and "lora_B" in name)
    tensors[name] = tensors[name] * np.float32(1.001)


def rename_one(tensors: dict[str, np.ndarray]) -> None:
    name = sorted(tensors)[3]
    tensors[name.replace("base_model.model.", "base_model.")] = tensors.pop(name)


def scale_first(tensors: dict[str, np.ndarray]) -> None:
    name = sorted(tensors)[0]
    tensors[name] = np.asarray(tensors[name] * 1.001, tensors[name].dtype)


def transpose_one(tensors: dict[str, np.ndarray]) -> None:
    name = next(name for name in tensors if "v_proj.lora_A" in name)
    tensors[name] = np.ascontiguousarray(tensors[name].T)


TAMPERINGS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "scaled": (
        lambda out: change_tensors(out / "clients/client_4/adapter_model.safetensors", scale_one),
        r"client_4: lora_B of \w+ differs from the run's \(by up to",
    ),
    "renamed": (
        lambda out: change_tensors(out / "global/adapter_model.safetensors", rename_one),
        "unknown tensor 'base_model.model.layers",
    ),
    "transposed": (
        lambda out: change_tensors(out / "global/adapter_model.safetensors", transpose_one),
        r"v_proj.lora_A.weight' has shape \[32, 2\], not \[2, 32\]",
    ),
    "alpha": (
        lambda out: change_json(out / "clients/client_4-mixed/adapter_config.json", lora_alpha=63),
        "lora_alpha is 63.0, the run's is 64.0",
    ),
    "rank": (
        lambda out: change_json(out / "global/adapter_config.json", r=4),
        "adapter_config.json says r = 4",
    ),
    "base_name": (
        lambda out: change_json(
            out / "global/adapter_config.json", base_model_name_or_path="other"
        ),
        'base_model_name_or_path is "other"',
    ),
    "targets": (
        lambda out: change_json(out / "global/adapter_config.json", target_modules=["q_proj"]),
        "has tensors for 'model.layers.0.mlp.down_proj', which target_modules",
    ),
    "merged": (
        lambda out: change_tensors(out / "merged/model.safetensors", scale_first),
        "merged: .* differs from the run's",
    ),
    "merged_config": (
        lambda out: change_json(out / "merged/config.json", rms_norm_eps=1e-3),
        "config.json: describes another model",
    ),
    "base": (
        lambda out: change_tensors(out / "base/model.safetensors", scale_first),
        "base: .* differs from the run's",
    ),
    "weighting": (
        lambda out: change_json(out / "clients/client_4/weighting.json", scale=0.6),
        r"the weighting's \['scale'\] differ",
    ),
    "support": (
        lambda out: change_tensors(
            out / "clients/client_4/weighting.safetensors",
            lambda tensors: tensors.update(support=tensors["support"] * np.float32(1.1)),
        ),
        "support embeddings differ",
    ),
    "missing": (
        lambda out: (out / "clients/client_4/adapter_model.safetensors").unlink(),
        "client_4: no adapter_model.safetensors",
    ),
    "cut": (
        lambda out: os.truncate(out / "global/adapter_model.safetensors", 900),
        "damaged or cut short",
    ),
    "tokenizer": (
        lambda out: flip(out / "base/tokenizer.json"),
        "base/tokenizer.json: has changed since it was written; export again,",
    ),
    "generation": (
        lambda out: (out / "merged/generation_config.json").unlink(),
        "merged/generation_config.json: is missing; export again,",
    ),
    "record_of_an_adapter": (
        lambda out: change_json(out / "clients/client_4/feddpa.json", base={}),
        "client_4/feddpa.json: has changed since it was written; export again,",
    ),
    "files": (lambda out: change_json(out / "feddpa.json", files=[]), "its files are damaged"),
    "options": (lambda out: change_json(out / "feddpa.json", options=5), "options are damaged"),
    "another_run": (
        lambda out: change_json(out / "feddpa.json", seed=3),
        "seed is 3, the run's is 0",
    ),
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_a_tampered_export_is_caught(run_dir: Path, copied: Path, capsys, name: str):
    tamper, message = TAMPERINGS[name]
    tamper(copied)
    assert export(run_dir, copied, "--check") == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.count("\n") == 1


def flip(file: Path) -> None:
    """Changes a bit in the middle of a tokenizer: another token's text."""
    content = bytearray(file.read_bytes())
    content[int(len(content) * 0.3)] ^= 1
    file.write_bytes(content)


def test_cards_may_be_edited_and_older_exports_list_no_files(run_dir: Path, copied: Path):
    (copied / "README.md").write_text("ours")
    (copied / "clients/client_4/README.md").unlink()
    assert export(run_dir, copied, "--check") == 0
    record = json.loads((copied / "feddpa.json").read_text())
    assert "global/adapter_model.safetensors" in record.pop("files")
    (copied / "feddpa.json").write_text(json.dumps(record))
    assert export(run_dir, copied, "--check") == 0


def test_an_untouched_export_passes(run_dir: Path, copied: Path, capsys):
    assert export(run_dir, copied, "--check") == 0
    assert "every tensor equals the run's" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["scaled", "renamed", "alpha", "merged"])
def test_export_reads_back_before_it_says_done(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, name: str
):
    """Damage between writing and reading back: exit 2, and no export is left."""
    tamper, message = TAMPERINGS[name]
    honest = export_folder.check_export

    def damaged(folder: Path, *rest: Any) -> None:
        tamper(folder)
        honest(folder, *rest)

    monkeypatch.setattr(export_folder, "check_export", damaged)
    out = tmp_path / "out"
    assert export(run_dir, out, "--mixed", "0.25", "--merged", "client_1:0.5") == 2
    assert re.search(message, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_mixed_in_peft_equals_two_adapters(exported: Path):
    """`-mixed` is (1 - w) global + w local, by peft's own arithmetic."""

    def logits(*places: tuple[str, float]) -> torch.Tensor:
        base: Any = AutoModelForCausalLM.from_pretrained(exported / "base", dtype=torch.float32)
        model: Any = None
        for number, (place, _) in enumerate(places):
            folder, name = str(exported / place), f"a{number}"
            if number == 0:
                model = PeftModel.from_pretrained(base, folder, adapter_name=name)
            else:
                model.load_adapter(folder, adapter_name=name)
        model.base_model.set_adapter([f"a{n}" for n in range(len(places))])
        for module in model.modules():
            if hasattr(module, "set_scale"):
                for number, (_, weight) in enumerate(places):
                    module.set_scale(f"a{number}", weight)
        with torch.no_grad():
            return model.eval()(input_ids=torch.arange(20)[None]).logits

    both = logits(("global", 0.75), ("clients/client_2", 0.25))
    torch.testing.assert_close(logits(("clients/client_2-mixed", 1.0)), both, atol=1e-4, rtol=0)
    assert (both - logits(("global", 1.0))).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--mixed", "1.5"], "--mixed: the local weight 1.5 is not between 0 and 1"),
        (["--mixed", "nan"], "--mixed: the local weight nan"),
        (["--mixed", "half"], "argument --mixed: invalid float value"),
        (
            ["--merged", "client_9"],
            "--merged: no client 'client_9'; use global, or one of client_0",
        ),
        (["--merged", "client_1:x"], "--merged: 'x' is no number; write NAME:W"),
        (["--merged", "client_1:2"], "--merged: the local weight 2 is not between"),
        (["--step", "0"], r"--step: no checkpoint '0' in .*there are .*2"),
        (["--lora.rank", "4"], "another configuration .lora.rank: 2 -> 4"),
    ],
)
def test_bad_options(run_dir: Path, tmp_path: Path, capsys, more: list[str], message: str):
    assert export(run_dir, tmp_path / "out", *more) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert list(tmp_path.iterdir()) == []


def test_bad_targets(run_dir: Path, tmp_path: Path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert export(run_dir, tmp_path / "full") == 2
    assert "full is not empty; name a new folder" in capsys.readouterr().err
    assert export(run_dir, tmp_path / "full" / "mine.txt") == 2
    assert export(run_dir, tmp_path / "full" / "mine.txt" / "out") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "mine.txt/out" in error and "a part of the path is a file" in error
    assert export(run_dir, Path("/proc/version/out")) == 2
    assert export(run_dir, Path("/proc/out")) == 2
    assert "/proc/out: cannot be written" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert export(run_dir, tmp_path / "empty") == 0
    assert export(tmp_path / "full", tmp_path / "new") == 2
    assert export(run_dir, tmp_path / "new", "--check") == 2
    assert "no feddpa.json" in capsys.readouterr().err


def test_methods_with_one_kind_of_adapter(tmp_path: Path, capsys):
    for method, places in (("fedit", {"global"}), ("local", {"clients"})):
        run, out = tmp_path / method, tmp_path / f"{method}-out"
        more = ["--fed.method", method, "--fed.rounds", "1", "--no-eval"]
        assert main(["train", "--run-dir", str(run), *SMALL, *more]) == 0
        assert export(run, out) == 0
        assert {p.name for p in out.iterdir()} == {"README.md", "feddpa.json", "base", *places}
        assert not list(out.rglob("weighting.json"))
        assert "was not evaluated" in (out / "README.md").read_text()
        capsys.readouterr()
        assert export(run, tmp_path / "no", "--mixed", "0.5") == 2
        assert f"{method} has not both" in capsys.readouterr().err


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "eval/summary.json").read_text())


def test_exported_adapters_evaluate_as_the_run_does(exported: Path, run_dir: Path, tmp_path: Path):
    """From PEFT folders, as if they had been trained elsewhere: the same table."""
    (tmp_path / "config.yaml").write_text(
        f"init: {{global_adapter: {exported}/global, local_adapter: {exported}/clients}}\n"
    )
    config = ["--config", str(tmp_path / "config.yaml")]
    assert main(["eval", *config, "--run-dir", str(tmp_path / "again"), *SMALL]) == 0
    again, whole = summary_of(tmp_path / "again"), summary_of(run_dir)
    assert again.pop("round") is None and whole.pop("round") == 2
    assert again == whole


def test_one_adapter_serves_all_clients(exported: Path, tmp_path: Path):
    (tmp_path / "config.yaml").write_text(
        f"init: {{local_adapter: {exported}/clients/client_3}}\neval: {{metrics: [nll]}}\n"
    )
    config = ["--config", str(tmp_path / "config.yaml")]
    assert main(["eval", *config, "--run-dir", str(tmp_path / "again"), *SMALL]) == 0
    summary = summary_of(tmp_path / "again")
    assert list(summary["modes"]) == ["base", "local"] and summary["answers_with"] == "local"
    rows = summary["modes"]["local"]["nll"]["matrix"]
    assert rows["client_0"] == rows["client_3"] != summary["modes"]["base"]["nll"]["matrix"]


def test_eval_of_folders_needs_folders_and_a_new_run(exported: Path, tmp_path: Path, capsys):
    config, new = tmp_path / "config.yaml", tmp_path / "new"
    config.write_text("seed: 0\n")
    evaluate = ["eval", "--config", str(config), *SMALL]
    assert main([*evaluate, "--run-dir", str(new)]) == 2
    assert "neither is set; set one" in capsys.readouterr().err
    config.write_text(f"init: {{global_adapter: {exported}/global}}\neval: {{metrics: [nll]}}\n")
    # Refused ones leave nothing, and the corrected command works in the same folder.
    assert main([*evaluate, "--run-dir", str(new), "--lora.alpha", "7"]) == 2
    remedy = shlex.split(capsys.readouterr().err.partition("; to use it: ")[2])
    assert remedy[:4] == ["--lora.rank", "2", "--lora.alpha", "32.0"]
    assert not new.exists()
    assert main([*evaluate, "--run-dir", str(new), "--eval.modes", "[local]"]) == 2
    assert "eval.modes" in capsys.readouterr().err
    assert main([*evaluate, "--run-dir", str(new), *remedy, "--data.max_test", "2"]) == 0
    assert list(summary_of(new)["modes"]) == ["base", "global"]


def test_steps(tmp_path: Path, capsys):
    """The best checkpoint stays beside the last, and every command can name either."""
    run = tmp_path / "run"
    held = ["--data.validation", "1"]
    assert main(["train", "--run-dir", str(run), *SMALL, *held, "--no-eval"]) == 0
    losses = [
        json.loads(line)["validation_loss"]
        for line in (run / "metrics.jsonl").read_text().splitlines()
    ]
    best = int(np.argmin(losses))
    kept = rounds_saved(run / "checkpoints")
    assert kept == sorted({best, 2})
    assert export(run, tmp_path / "best", "--step", "best") == 0
    assert json.loads((tmp_path / "best/feddpa.json").read_text())["round"] == best
    assert export(run, tmp_path / "last", "--step", "2") == 0
    assert main(["eval", "--run-dir", str(run), "--step", "best", "--eval.metrics", "[nll]"]) == 0
    assert summary_of(run)["round"] == best
