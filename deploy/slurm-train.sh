#!/usr/bin/env bash
# One trial over all GPUs of several nodes: sbatch deploy/slurm-train.sh EXPERIMENT.yaml [options of `medst train`]
# Submit it from the project folder, which all nodes see. Submitted again, it goes on from its checkpoint.
#SBATCH --job-name=medst-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --output=%x-%j.log
set -euo pipefail

experiment=${1:?usage: sbatch deploy/slurm-train.sh EXPERIMENT.yaml [options of medst train]}
shift
cd "$SLURM_SUBMIT_DIR"
source .venv/bin/activate

export OMP_NUM_THREADS=1
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))
srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" \
    --rdzv-backend c10d --rdzv-endpoint "$head:$port" --rdzv-id "$SLURM_JOB_ID" \
    -m medst train "$experiment" --set training.device=cuda "$@"
