#!/usr/bin/env bash
# One training run on several nodes under SLURM, a process for each GPU. JAX reads the addresses and
# numbers of the processes from SLURM itself (--coordinator=auto). Requeued after a preemption, it
# goes on from its last checkpoint: the workdir lies on a disk that all nodes share. SLURM's SIGTERM
# before a preemption, and a minute before the time is over, makes all processes write one; their exit
# status is 143 then.
#
#   sbatch experiments/tpu/slurm.sh runs/NAME --config=configs/imagenet_resnet50.py [more flags]
#
# Not run: no SLURM cluster was at hand. Several processes with one workdir are tested on CPU
# (tests/train/faults_test.py).
#SBATCH --job-name=dtp_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@60
set -euo pipefail
workdir=${1:?run folder on a shared disk}
shift
srun --kill-on-bad-exit=1 .venv/bin/python -m experiments.train --coordinator=auto \
  --workdir="$workdir" "${@:---config=configs/imagenet_resnet50.py}"
