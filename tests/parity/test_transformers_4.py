"""What we write, in an older `transformers`: the same logits, and the same tokens of texts.

It lies in a folder of its own (`requirements-transformers-4.txt`) and runs as a process of its own,
one for everything that is asked here.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from transformers import AutoTokenizer

from feddpa_jax.adapters.dual import dual_branches
from feddpa_jax.adapters.lora import bank_of
from feddpa_jax.export.contents import ModelOut
from feddpa_jax.hf import load_base
from feddpa_jax.hf.load import Base
from feddpa_jax.hf.save import save_model
from feddpa_jax.testing import write_tiny_gguf
from tests.parity.families import FAMILIES, random_hf_model, save
from tests.parity.test_peft import SCALE, our_logits, random_adapter, tokens

OLDER = Path(sys.prefix) / "transformers-4"
PROGRAM = """
import json, sys
import numpy as np, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

assert transformers.__version__.startswith("4."), transformers.__version__
asked = json.load(open(sys.argv[1]))
logits, said = {}, {}
for name, folder in asked["models"].items():
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    assert model.dtype == torch.float32
    with torch.no_grad():
        logits[name] = model(input_ids=torch.tensor(asked["tokens"])).logits.numpy()
for name, folder in asked["tokenizers"].items():
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(asked["texts"][name]).input_ids
    said[name] = [ids, [tokenizer.decode(i, skip_special_tokens=True) for i in ids]]
np.savez(sys.argv[2], **logits)
json.dump(said, open(sys.argv[3], "w"))
"""


def default(theta: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}


# (case, what differs from it); none has the theta that transformers 4 takes where it finds none.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in FAMILIES if not name.startswith(("llama", "mistral", "qwen"))},
    "llama3": ("llama3", {"rope_parameters": {**FAMILIES["llama3"][1]["rope_parameters"]}}),
    "llama_linear": (
        "llama2",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 3e5}},
    ),
    "llama_biased": ("llama_biased", default(2e5)),
    "mistral": ("mistral", default(5e4)),
    "mistral_global": ("mistral_global", default(1e6)),
    "qwen2": ("qwen2", default(1e6)),
    "qwen2_window": ("qwen2_window", default(7e4)),
    "qwen3_biased": ("qwen3_biased", default(1e6)),
}
CASES["llama3"][1]["rope_parameters"]["rope_theta"] = 5e5


def in_old_form(folder: str) -> None:
    """The config.json as transformers 4 writes it."""
    file = Path(folder) / "config.json"
    config = json.loads(file.read_text())
    found = config.pop("rope_parameters")
    whole = found.get("full_attention", found)
    if "sliding_attention" in found:
        config["rope_local_base_freq"] = found["sliding_attention"]["rope_theta"]
    config["rope_theta"] = whole.pop("rope_theta")
    config["rope_scaling"] = None if whole["rope_type"] == "default" else whole
    config["torch_dtype"] = config.pop("dtype")
    file.write_text(json.dumps(config))


def with_a_stated_bos(folder: str) -> None:
    """Ids of no special token, as a config.json of a family's defaults has them."""
    file = Path(folder) / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "bos_token_id": 1}))


def all_texts(base: Base) -> list[str]:
    """Every token alone and between others, and what makes the odd ones."""
    size = base.tokenizer.vocabulary_size
    alone = [base.tokenizer.backend.decode([i], skip_special_tokens=False) for i in range(size)]
    return [*alone, *(f"a{text} b" for text in alone), 'He said "no".', " two  spaces ", "été 不"]


class Asked:
    """Models and tokenizers by name, with what they should give."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.models: dict[str, str] = {}
        self.logits: dict[str, np.ndarray] = {}
        self.bases: dict[str, Base] = {}
        self.texts: dict[str, list[str]] = {}

    def add_merged(self, name: str, path: str) -> None:
        base = load_base(path, "float32")
        global_, local = random_adapter(base.model, seed=1), random_adapter(base.model, seed=2)
        branches = dual_branches(
            *(bank_of(global_), bank_of(local), jnp.zeros(2, jnp.int32), jnp.full(2, 0.75)),
            scale=SCALE,
        )
        self._add(name, base, ModelOut([(global_, 0.25), (local, 0.75)], "both"), branches)

    def add_base(self, name: str, path: str) -> None:
        self.bases[name] = base = load_base(path, "float32")
        self._add(name, base, ModelOut([], "the base"), ())
        self.texts[name] = all_texts(base)

    def _add(self, name: str, base: Base, out: ModelOut, branches: Any) -> None:
        save_model(self.folder / name, base, out.change(SCALE))
        self.models[name] = str(self.folder / name)
        self.logits[name] = our_logits(base.model, tokens(), branches)


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> Asked:
    made = Asked(tmp_path_factory.mktemp("exports"))
    sources = tmp_path_factory.mktemp("sources")
    for name, (case, changes) in CASES.items():
        made.add_merged(name, save(random_hf_model(case, **changes), sources / name))
    for name in ("llama3", "gemma3_linear"):
        case, changes = CASES[name]
        folder = save(random_hf_model(case, **changes), sources / f"{name}-old")
        in_old_form(folder)
        made.add_merged(f"{name}-old", folder)
    stated = save(random_hf_model("smollm2"), sources / "stated")
    with_a_stated_bos(stated)
    made.add_base("stated", stated)
    made.add_base("gguf", str(write_tiny_gguf(sources / "tiny.gguf")))
    made.add_base("tiny", "tiny")
    return made


@pytest.fixture(scope="module")
def older(asked: Asked, tmp_path_factory) -> tuple[Any, dict[str, Any]]:
    """Logits and encoded texts of the older transformers."""
    if not OLDER.is_dir():
        pytest.skip(f"no older transformers in {OLDER}: bash launch/test.sh installs it there")
    folder = tmp_path_factory.mktemp("older")
    question = {
        "models": asked.models,
        "tokens": tokens().tolist(),
        "tokenizers": {name: asked.models[name] for name in asked.texts},
        "texts": asked.texts,
    }
    (folder / "asked.json").write_text(json.dumps(question))
    files = [str(folder / name) for name in ("asked.json", "logits.npz", "said.json")]
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, *files],
        env={**os.environ, "PYTHONPATH": str(OLDER), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return np.load(files[1]), json.loads(Path(files[2]).read_text())


BASES = ("stated", "gguf", "tiny")


@pytest.mark.parametrize("name", [*CASES, "llama3-old", "gemma3_linear-old", *BASES])
def test_the_same_logits(asked: Asked, older: tuple, name: str):
    np.testing.assert_allclose(older[0][name], asked.logits[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", BASES)
def test_the_same_tokens_and_texts(asked: Asked, older: tuple, name: str):
    """By the older transformers and the installed one: no token is special that was none."""
    tokenizer, texts = asked.bases[name].tokenizer, asked.texts[name]
    ours = [tokenizer.encode(text) for text in texts]
    theirs: Any = AutoTokenizer.from_pretrained(asked.models[name])
    assert theirs(texts).input_ids == ours
    decoded = [theirs.decode(ids, skip_special_tokens=True) for ids in ours]
    assert decoded == [tokenizer.decode(ids) for ids in ours]
    assert older[1][name] == [ours, [tokenizer.decode(ids) for ids in ours]]
    assert tokenizer.decode(ours[-3]) == 'He said "no".'
