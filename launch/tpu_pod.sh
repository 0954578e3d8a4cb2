#!/usr/bin/env bash
# Training on all hosts of a TPU pod slice; started on a machine with gcloud, from a copy of the project.
#   bash launch/tpu_pod.sh NAME ZONE --config configs/paper/dataset1_feddpa_t.yaml --run-dir runs/dataset1
# Copies the project to every host and installs there; the run folder is on worker 0.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if (($# < 2)); then
  echo "usage: bash launch/tpu_pod.sh NAME ZONE [options of feddpa train]" >&2
  exit 2
fi
name="$1" zone="$2"
shift 2
on_all() {
  gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker all --command "cd feddpa_jax && $1"
}
folder="$(mktemp -d)"
trap 'rm -r "$folder"' EXIT
git archive --format=tar.gz --prefix=feddpa_jax/ --output="$folder/feddpa_jax.tar.gz" HEAD
gcloud compute tpus tpu-vm scp "$folder/feddpa_jax.tar.gz" "$name": --zone "$zone" --worker all
gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker all --command "tar xzf feddpa_jax.tar.gz"
on_all "source launch/_environment.sh && make_environment && \
  .venv/bin/python -m pip install --quiet \"jax[tpu]==\$(sed -n 's/^jax==//p' requirements.txt)\""
on_all ".venv/bin/feddpa train --distributed $(printf '%q ' "$@")"
