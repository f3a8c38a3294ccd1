#!/bin/bash
# A sweep on Slurm: one job, on each of its machines `ray symmetric-run` starts Ray, and the first runs the command.
#
#   sbatch clusters/slurm.sh --device cuda --store /shared/ddae-sweeps          in this folder; flags go to the sweep
#   tail -f slurm-*.out
#
# This folder, its environment (.venv) and the store lie where all machines see them. Killed at its time limit, the
# same line goes on. MLflow: sqlite:///mlflow.db in this folder, or the server at MLFLOW_TRACKING_URI.
#SBATCH --job-name=ddae-sweeps
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --time=12:00:00
set -euo pipefail
export PATH=$PWD/.venv/bin:$PATH
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(getent ahostsv4 "$head" | awk '{print $1; exit}'):6379
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')    # this job's own; srun hands it on
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300
srun ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus="$SLURM_CPUS_PER_TASK" -- env RAY_ADDRESS="$address" python sweeps/layer_noise.py "$@"
