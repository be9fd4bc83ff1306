#!/usr/bin/env bash
# One training run on a Cloud TPU VM, on one host or on all hosts of a slice: the same command starts
# a process on each, and --coordinator=auto lets JAX find the others. A preempted or failed job is
# started again by the same command and goes on from its last checkpoint.
#
#   experiments/tpu/cloud_tpu.sh TPU_NAME ZONE gs://BUCKET/runs/NAME [--config=... more flags]
#
# Not run: written from the documentation of gcloud and JAX; no TPU was at hand. What it relies on,
# several processes with --coordinator and one workdir, is tested on CPU (tests/train/faults_test.py).
# The workdir must be a folder that every host sees, so a bucket is mounted (gcsfuse); a run folder
# on local disks of several hosts does not work.
set -euo pipefail
name=${1:?TPU_NAME} zone=${2:?ZONE} place=${3:?gs://BUCKET/path of the run folder}
shift 3
bucket=${place#gs://} bucket=${bucket%%/*} path=${place#gs://*/}
flags=$(printf ' %q' "${@:---config=configs/imagenet_resnet50.py}")
on_all() { gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"; }

gcloud compute tpus tpu-vm scp --recurse --zone="$zone" --worker=all . "$name":dtp_jax_source
on_all "cd dtp_jax_source && python3 -m venv .venv && .venv/bin/pip install -q -e '.[tpu,demo]'"
on_all "mkdir -p runs && { mountpoint -q runs || gcsfuse --implicit-dirs $bucket runs; }"
on_all "cd dtp_jax_source && .venv/bin/python -m experiments.train --coordinator=auto \
  --workdir=\$HOME/runs/$path$flags"
