"""Run folders: what came to nothing blocks nothing, and what holds results is kept."""

from pathlib import Path

import jax
import pytest

from feddpa_jax.adapters.lora import init_adapter
from feddpa_jax.cli.program import main
from feddpa_jax.config import load_config
from feddpa_jax.hf import load_base
from feddpa_jax.hf.peft_format import write_adapter
from feddpa_jax.run.folder import RunFolder
from feddpa_jax.run.history import append_round
from feddpa_jax.run.opening import reread
from feddpa_jax.types import UserError

FIRST = load_config(None, ["--fed.rounds", "3"])
CORRECTED = load_config(None, ["--fed.rounds", "4"])


def test_a_run_that_came_to_nothing_does_not_block_the_corrected_one(tmp_path: Path):
    run = RunFolder(tmp_path / "run")
    run.check(FIRST)
    run.start(FIRST)
    # What the first round may have left before it failed.
    (run.checkpoints / "clients" / "client_0").mkdir(parents=True)
    (run.checkpoints / ".writing-00000").mkdir()
    append_round(run.path, {"round": 0})
    run.check(CORRECTED)
    run.start(CORRECTED)
    assert run.read_config() == CORRECTED


def test_a_field_that_an_older_version_had_is_skipped_in_its_folder_alone(tmp_path: Path):
    run = RunFolder(tmp_path / "run")
    run.start(FIRST)
    older = run.config_file.read_text().replace("eval:\n", "eval:\n  bootstrap: 1000\n")
    assert "bootstrap" in older
    run.write("config.yaml", older)
    assert run.read_config() == FIRST
    run.check_same_training(FIRST)
    _, config = reread(run.path, ["--eval.beams", "2"])
    assert config.eval.beams == 2
    with pytest.raises(UserError, match=r"unknown key 'eval\.bootstrap'"):
        load_config(run.config_file)
    # What was never a field is still refused.
    run.write("config.yaml", older.replace("bootstrap", "bootstraps"))
    with pytest.raises(UserError, match=r"unknown key 'eval\.bootstraps'"):
        run.read_config()


def test_a_run_is_read_and_goes_on_where_its_attention_has_no_kernel(tmp_path: Path):
    """It is of the devices, which may be others; what was explicit stays so."""
    run = RunFolder(tmp_path / "run")
    for asked, found in (("cudnn", "auto"), ("explicit", "explicit"), ("auto", "auto")):
        run.start(load_config(None, ["--fed.rounds", "3", "--model.attention", asked]))
        run.check_same_training(FIRST)
        assert reread(run.path, [])[1].model.attention == found
    with pytest.raises(UserError, match=r"model.quantize: None -> nf4"):
        run.check_same_training(load_config(None, ["--fed.rounds", "3", "--model.quantize", "nf4"]))


@pytest.mark.parametrize("result", ["checkpoints/00000", "eval/summary.json"])
def test_a_run_with_results_is_kept(tmp_path: Path, result: str):
    run = RunFolder(tmp_path / "run")
    run.start(FIRST)
    (run.path / result).mkdir(parents=True)
    run.check(FIRST)
    run.check(CORRECTED)  # It may have more rounds.
    with pytest.raises(UserError, match=r"another configuration \(fed.rounds: 3 -> 2\)"):
        run.check(load_config(None, ["--fed.rounds", "2"]))
    assert run.read_config() == FIRST


def test_another_program_s_config_is_never_overwritten(tmp_path: Path):
    run = RunFolder(tmp_path)
    run.config_file.write_text("server: {port: 80}\n")
    with pytest.raises(UserError, match="unknown key 'server'"):
        run.check(FIRST)


def test_a_diverged_first_round_can_be_corrected(tmp_path: Path, capsys):
    """The adapter is finite, what it computes is not: found out when the folder is there."""
    base = load_base("tiny", "float32").model.config
    sizes = {target: base.target_sizes()[target] for target in ("q_proj", "v_proj")}
    adapter = init_adapter(jax.random.key(0), sizes, layers=base.layers, rank=2)
    for pair in adapter.values():
        pair["b"] += 3e38
    write_adapter(tmp_path / "huge", adapter, base, alpha=16.0, dropout=0.0, base=None)
    run = tmp_path / "run"
    command = ["train", "--run-dir", str(run), "--no-eval", "--model.path", "tiny"]
    command += ["--model.dtype", "float32", "--data.max_train", "2", "--fed.rounds", "1"]
    command += ["--fed.local_epochs", "1", "--fed.batch_size", "2", "--data.max_length", "256"]
    command += ["--lora.rank", "2", "--fed.micro_batch_size", "null"]
    assert main([*command, "--init.global_adapter", str(tmp_path / "huge")]) == 2
    assert "not finite" in capsys.readouterr().err
    assert RunFolder(run).read_config().init.global_adapter is not None
    assert main(command) == 0
    assert RunFolder(run).read_config().init.global_adapter is None
