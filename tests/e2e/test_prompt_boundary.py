"""What is trained is what is answered: a response keeps the white space that it starts with."""

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from feddpa_jax.cli.program import main
from feddpa_jax.data.templates import alpaca_short
from feddpa_jax.hf.folder_tokenizer import folder_tokenizer
from feddpa_jax.testing import write_tiny_hf_folder
from feddpa_jax.types import Example

PAIRS = {"Complete the body of def f1(x):": "    return x + 1", "Is it so?": "\n\nyes"}
SMALL = [
    *("--model.dtype", "float32", "--data.max_length", "128", "--fed.method", "fedlora"),
    *("--lora.rank", "8", "--lora.dropout", "0", "--fed.learning_rate", "2e-2"),
    *("--lora.targets", "[q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj]"),
    *("--fed.rounds", "1", "--fed.local_epochs", "120", "--fed.batch_size", "2"),
    *("--fed.micro_batch_size", "null", "--eval.max_new_tokens", "12"),
    *("--eval.modes", "[local]"),
]


def write_model(folder: Path) -> Path:
    """A random model whose tokenizer has tokens that reach over the end of a prompt."""
    write_tiny_hf_folder(folder)
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    texts = [alpaca_short(Example(asked, "")) + answer for asked, answer in PAIRS.items()]
    trainer = trainers.BpeTrainer(vocab_size=250, min_frequency=2, show_progress=False)
    backend.train_from_iterator(texts * 3, trainer)
    backend.add_special_tokens([AddedToken("<|end|>", special=True, normalized=False)])
    backend.save(str(folder / "tokenizer.json"))
    tokenizer = folder_tokenizer(folder)
    for asked in PAIRS:
        prompt = alpaca_short(Example(asked, ""))
        ids = tokenizer.encode(prompt)
        assert tokenizer.encode(prompt + PAIRS[asked])[: len(ids)] != ids
    return folder


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("boundary")
    lines = [
        json.dumps({"instruction": asked, "output": answer, "task": "t"}) + "\n"
        for asked, answer in PAIRS.items()
    ]
    (folder / "data/clients/anna").mkdir(parents=True)
    wordless = json.dumps({"instruction": "Go on.", "output": "...", "task": "t"})
    for name, more in (("train.jsonl", ""), ("test.jsonl", wordless)):
        (folder / "data/clients/anna" / name).write_text("".join(lines) + more, encoding="utf-8")
    model = write_model(folder / "model")
    paths = ["--model.path", str(model), "--data.path", str(folder / "data")]
    assert main(["train", "--run-dir", str(folder / "run"), *paths, *SMALL]) == 0
    return folder / "run"


def test_answers_are_the_targets_with_their_leading_white_space(run_dir: Path):
    lines = (run_dir / "eval" / "instances.jsonl").read_text(encoding="utf-8").split("\n")
    found = [json.loads(line) for line in lines if line]
    assert [line["prediction"] for line in found[:2]] == list(PAIRS.values())
    assert [line["scores"]["exact_match"] for line in found[:2]] == [100.0, 100.0]


def test_targets_without_words_are_counted(run_dir: Path, tmp_path: Path):
    summary = json.loads((run_dir / "eval" / "summary.json").read_text(encoding="utf-8"))
    assert summary["targets_without_words"] == 1
    assert main(["export", "--run-dir", str(run_dir), "--out", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "1 test target has no word, only punctuation: ROUGE-1 is 0 for it" in card


def test_generate_prints_the_answer_whole(run_dir: Path, capsys: pytest.CaptureFixture[str]):
    asked = next(iter(PAIRS))
    assert main(["generate", "--run-dir", str(run_dir), "--client", "anna", "--prompt", asked]) == 0
    assert capsys.readouterr().out.split("\n", 1)[1] == PAIRS[asked] + "\n"


def test_the_reference_s_encoding_is_a_setting(run_dir: Path, capsys: pytest.CaptureFixture[str]):
    folder = run_dir.parent
    paths = ["--model.path", str(folder / "model"), "--data.path", str(folder / "data")]
    said = {}
    for encoding in ("separate", "joint"):
        assert main(["data", *paths, "--data.encoding", encoding]) == 0
        said[encoding] = " ".join(capsys.readouterr().out.split())
    # The two prompts of PAIRS, in training and among the three test instances.
    assert "4 of 5 prompts have other tokens here than at inference" in said["joint"]
    assert "other tokens" not in said["separate"]
