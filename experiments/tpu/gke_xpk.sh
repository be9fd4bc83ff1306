#!/usr/bin/env bash
# One training run on a TPU slice of a GKE cluster, through XPK. The image is built from this folder;
# JAX finds the processes of the slice by itself (--coordinator=auto). XPK starts a failed or
# preempted slice again, and the run goes on from its last checkpoint, which SIGTERM makes it write
# (exit status 143).
#
#   experiments/tpu/gke_xpk.sh CLUSTER ZONE v5litepod-16 RUN_NAME [--config=... more flags]
#
# Not run: no cluster was at hand. The cluster must mount a bucket or a Filestore share at /runs in
# every pod (xpk storage attach), since all hosts write their part of the checkpoints there.
set -euo pipefail
cluster=${1:?CLUSTER} zone=${2:?ZONE} kind=${3:?TPU type} name=${4:?RUN_NAME}
shift 4
flags=$(printf ' %q' "${@:---config=configs/imagenet_resnet50.py}")
xpk workload create --cluster="$cluster" --zone="$zone" --tpu-type="$kind" --workload="$name" \
  --base-docker-image=python:3.12 --script-dir=. --max-restarts=10 \
  --command="pip install -q -e '.[tpu,demo]' && python -m experiments.train --coordinator=auto \
    --workdir=/runs/$name$flags"
