#!/usr/bin/env bash
# Training on several machines under SLURM, a process for every GPU; submitted from the project's root.
#   sbatch --nodes=4 launch/slurm.sh --config configs/paper/dataset1_feddpa_t.yaml --run-dir runs/dataset1
#SBATCH --job-name=feddpa
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --output=feddpa-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
srun "${FEDDPA:-.venv/bin/feddpa}" train --distributed "$@"
