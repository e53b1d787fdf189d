#!/usr/bin/env bash
# A study on several nodes: sbatch deploy/slurm-sweep.sh STUDY [options of `medst sweep run`]
# Submit it from the project folder, which all nodes see. When the time is up, or a node is lost, submit it again: what is
# finished is not computed again.
#SBATCH --job-name=medst-sweep
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --output=%x-%j.log
set -euo pipefail

: "${MLFLOW_TRACKING_URI:?set it to the tracking server, which all nodes reach: http://host:5000}"
study=${1:?usage: sbatch deploy/slurm-sweep.sh STUDY [options of medst sweep run]}
shift
cd "$SLURM_SUBMIT_DIR"
source .venv/bin/activate

export OMP_NUM_THREADS=1 RAY_USAGE_STATS_ENABLED=0
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# A port of this job's own, for jobs that share a node.
port=$((20000 + SLURM_JOB_ID % 20000))
export RAY_ADDRESS="$head:$port"
# Starts Ray on every node, the command on the first of them alone, and ends Ray with it.
srun --kill-on-bad-exit=0 ray symmetric-run --address "$RAY_ADDRESS" --min-nodes "$SLURM_NNODES" \
    --num-cpus "$SLURM_CPUS_PER_TASK" --num-gpus "${SLURM_GPUS_ON_NODE:-0}" \
    -- python -m medst sweep run "$study" "$@"
