"""The launch scripts do what they say, as far as one machine can tell."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.e2e.test_processes import ROOT, RUN, free_port

# A task launcher: two tasks of the same command on this machine, as SLURM numbers them.
SRUN = """#!/usr/bin/env bash
for task in 0 1; do
  SLURM_PROCID=$task SLURM_LOCALID=0 "$@" >"$OUTPUT.$task" 2>&1 &
  tasks[task]=$!
done
wait "${tasks[0]}" && wait "${tasks[1]}"
"""
GCLOUD = """#!/usr/bin/env bash
printf '%s\\n' "$*" >>"$OUTPUT"
"""


def stub(folder: Path, name: str, text: str) -> dict[str, str]:
    """An environment in which a program is ours, and `feddpa` this one."""
    for program, body in (
        (name, text),
        ("feddpa", f'#!/usr/bin/env bash\nexec {sys.executable} -m feddpa_jax.cli.program "$@"\n'),
    ):
        (folder / program).write_text(body)
        (folder / program).chmod(0o755)
    return os.environ | {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "FEDDPA": str(folder / "feddpa"),
        "OUTPUT": str(folder / "said"),
        "PYTHONPATH": str(ROOT),
    }


def launch(script: str, *options: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / "launch" / script), *options]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


def test_slurm(tmp_path: Path):
    env = stub(tmp_path, "srun", SRUN) | {
        # What SLURM tells every task; JAX makes its port from the job's number.
        "SLURM_JOB_ID": str(free_port()),
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": "2",
        "JAX_NUM_CPU_DEVICES": "1",
    }
    ran = launch("slurm.sh", "--run-dir", str(tmp_path / "run"), *RUN, "--fed.rounds", "1", env=env)
    said = [(tmp_path / f"said.{task}").read_text() for task in (0, 1)]
    assert ran.returncode == 0, said
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert len(environment["devices"]) == 2
    assert "feddpa eval --run-dir" in said[0] and "run folder" not in said[1]


def test_tpu_pod(tmp_path: Path):
    env = stub(tmp_path, "gcloud", GCLOUD)
    options = ["--config", "configs/tiny.yaml", "--run-dir", "runs/my run"]
    assert launch("tpu_pod.sh", "pod", "us-east5-a", *options, env=env).returncode == 0
    *_, install, train = (tmp_path / "said").read_text().splitlines()
    assert "--zone us-east5-a --worker all" in train and "jax[tpu]==" in install
    last = train.partition("--command ")[2]
    assert last.startswith("cd feddpa_jax && .venv/bin/feddpa train --distributed --config")
    assert "runs/my\\ run" in last
    assert launch("tpu_pod.sh", env=env).returncode == 2


def test_multi_gpu(tmp_path: Path):
    env = stub(tmp_path, "gcloud", GCLOUD)
    ran = launch("multi_gpu.sh", "--run-dir", str(tmp_path), "--fed.rownds", "3", env=env)
    assert ran.returncode == 2 and "did you mean 'fed.rounds'" in ran.stderr


def test_bench(tmp_path: Path):
    env = os.environ | {"PYTHON": sys.executable}
    (tmp_path / "bench.json").write_text("{}")
    ran = launch("bench.sh", "--out", str(tmp_path), "--model.path", "tiny", env=env)
    assert (ran.returncode, ran.stdout) == (2, "")
    line = f"launch/bench.sh: error: --out: {tmp_path} holds a bench.json already; name another"
    assert ran.stderr.startswith(line) and ran.stderr.count("\n") == 1


def test_gpu_course(tmp_path: Path):
    env = os.environ | {"PYTHON": sys.executable}
    ran = launch("gpu.sh", str(tmp_path / "out"), "--tiny", env=env)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    out = tmp_path / "out"
    parts = json.loads((out / "gpu.json").read_text())["parts"]
    assert all(part["done"] for part in parts.values())
    assert "passed" in parts["parity"]["tests"]
    step, answers = parts["tiny"], parts["answers-beams"]
    assert step["ratio"] > 0 and step["ours"]["model_flops_per_second"] > 0
    assert step["ours"]["real_tokens"] == step["torch"]["real_tokens"] and step["first_losses"]
    assert answers["ratio"] > 0
    # Fresh adapters change nothing, so in float32 both sides give the same answers.
    assert answers["torch"] | {"answers": 2, "identical": 2} == answers["torch"]
    # What is done is left alone, and what is not is taken up again.
    (out / "answers-beams.json").write_text(json.dumps(answers | {"done": False}))
    ran = launch("gpu.sh", str(out), "--tiny", "--seconds", "0.1", env=env)
    assert ran.returncode == 1
    assert ran.stdout.startswith("tiny: done before\nanswers-beams: no time is left")
    assert json.loads((out / "gpu.json").read_text())["parts"]["tiny"] == step
