#!/usr/bin/env bash
# Slurm: a Ray cluster over the job's nodes for the time of one run.
#   sbatch deploy/slurm.sh
# Two nodes of eight GPUs, as configs/mistral-7b-dpo-2-nodes.yaml has them. The folder that sbatch is called from must be
# on a file system that all nodes share, with the program installed in .venv.
#SBATCH --job-name=sapo
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
# shellcheck disable=SC1091
source .venv/bin/activate

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=6379
if [ ! -e configs/mistral-7b-dpo-2-nodes.yaml ]; then
  sapo recipes mistral-7b-dpo-2-nodes --to configs
fi

# Ray starts on every node, and the command on the first once all are there. The shell waits in the background, so that
# it hears Slurm's signal five minutes before the end: the run then saves and ends with status 3. Submit the script again
# to go on. After a preemption or the death of a node Slurm does so itself.
srun ray symmetric-run --address "$head:$port" --min-nodes "$SLURM_JOB_NUM_NODES" -- \
  sapo train configs/mistral-7b-dpo-2-nodes.yaml \
  "output_dir=$PWD/runs" "cluster.address=$head:$port" recovery.auto_resume=true &
step=$!
trap 'sapo stop --run mistral-7b-dpo-2-nodes --address "$head:$port" || true' TERM
while kill -0 "$step" 2>/dev/null; do
  wait "$step" || true
done
wait "$step"
