"""A run with a quantized base: its export says and brings that base, and no other resumes it."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import feddpa_jax as fd
from feddpa_jax.adapters.lora import bank_of
from feddpa_jax.adapters.mix import Term, branches_of
from feddpa_jax.cli.program import main
from feddpa_jax.hf.peft_format import read_adapter
from feddpa_jax.testing import write_tiny_hf_folder
from tests.export.test_export import SMALL, export
from tests.parity.test_peft import our_logits, their_logits


def test_an_adapter_goes_with_the_base_that_it_was_trained_on(tmp_path: Path, capsys):
    folder, run_dir, out = tmp_path / "model", tmp_path / "run", tmp_path / "out"
    write_tiny_hf_folder(folder, seed=5)
    given = [*SMALL, "--model.path", str(folder), "--fed.method", "fedit", "--fed.rounds", "1"]
    train = ["train", "--run-dir", str(run_dir), *given]
    assert main([*train, "--model.quantize", "nf4"]) == 0
    capsys.readouterr()
    assert main([*train, "--fed.rounds", "2"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "model.quantize" in line and "Traceback" not in line

    assert export(run_dir, out) == 0
    record = json.loads((out / "global/feddpa.json").read_text())["base"]
    held = fd.load_base(str(folder), "float32", "nf4")
    assert record == {
        **{"path": "model", "fingerprint": held.fingerprint},
        **{"quantize": "nf4", "layouts": ["nf4"]},
    }
    assert "model.quantize: nf4" in (out / "global/README.md").read_text()
    assert "model.quantize: nf4" in (out / "base/README.md").read_text()

    base = AutoModelForCausalLM.from_pretrained(str(out / "base"), dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, str(out / "global")).eval()
    found = read_adapter(out / "global", held.model.config)
    assert np.any(np.asarray(found.adapter["q_proj"]["b"]))
    tokens_BT = np.random.default_rng(0).integers(0, 256, (2, 14))
    scale = found.alpha / found.rank
    rows = branches_of([Term(bank_of(found.adapter))], jnp.zeros(2, jnp.int32), scale=scale)
    expected = their_logits(theirs, tokens_BT)
    np.testing.assert_allclose(our_logits(held.model, tokens_BT, rows), expected, atol=1e-4)
    before = fd.load_base(str(folder), "float32").model
    assert np.abs(our_logits(before, tokens_BT, rows) - expected).max() > 0.01
