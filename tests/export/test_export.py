"""Exports as users take them away: cards, weights, answers, tampering, and the way back in."""

import json
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from feddpa_jax.cli.program import main
from feddpa_jax.config import to_yaml
from feddpa_jax.export import export_folder
from feddpa_jax.export.contents import Trained
from feddpa_jax.files.escape import terminal
from tests.export.tampering import TAMPERINGS
from tests.export.tiny_run import SMALL, export, summary_of
from tests.shared_steps import remembered

pytestmark = pytest.mark.usefixtures("shared_steps")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def weighed_once() -> Iterator[None]:
    """Exports of one run with the same settings embed their supports once."""

    def of(trained: Trained) -> tuple[Any, ...]:
        leaves = jax.tree.leaves(trained.adapters)
        return to_yaml(trained.config), *(np.asarray(leaf).tobytes() for leaf in leaves)

    with pytest.MonkeyPatch.context() as patch:
        once = remembered(export_folder.make_weightings, of)
        patch.setattr(export_folder, "make_weightings", once)
        yield


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert main(["train", "--run-dir", str(folder), *SMALL]) == 0
    return folder


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


@pytest.mark.parametrize("name", TAMPERINGS)
def test_a_tampered_export_is_caught(run_dir: Path, copied: Path, capsys, name: str):
    tamper, message = TAMPERINGS[name]
    tamper(copied)
    assert export(run_dir, copied, "--check") == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.count("\n") == 1


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
