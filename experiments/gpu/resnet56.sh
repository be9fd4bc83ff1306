#!/usr/bin/env bash
# ResNet-56 on CIFAR-10 on one GPU: channels at 2.55x fewer MACs, and 5 % of single weights, each
# against the dense network, magnitude at the same budget, gradual magnitude and Spartan's mask, all
# forked from one dense network a seed. bfloat16, an epoch of steps in one call of the device. Stopped,
# the same command goes on.
#
#   experiments/gpu/resnet56.sh runs/resnet56 0,1,2
#
# Of GReg's recipe: 200 dense epochs at 0.1 (a tenth at 100, 150), batch 128, momentum 0.9, decay
# 5e-4, crops and mirroring; then 120 epochs at 0.01 (a tenth at 60, 90). Not of it: 60 epochs at 0.01
# with soft masks come before those 120, for every row; MACs are a budget of the whole network, where
# GReg fixes a ratio for each layer.
#
# Not run on a GPU: none was at hand. A few steps on a CPU:
#   experiments/gpu/resnet56.sh runs/try 0 ,runlocal 2
set -euo pipefail
workdir=${1:?run folder}
seeds=${2:-0,1,2}
more=${3:-}
steps_per_call=${4:-390}
[ -n "$more" ] || python -m dtp_jax.data.prepare cifar10
for seed in ${seeds//,/ }; do
  for cell in granularity=channels,budget=macs,keep=0.392 granularity=weights,budget=params,keep=0.05; do
    case $cell in
      *channels*) rows="('dense', 'l1_uniform', 'gradual_magnitude', 'spartan')" ;;
      *) rows="('dense', 'magnitude', 'gradual_magnitude', 'spartan')" ;;
    esac
    python -m experiments.train --config="configs/cifar10_resnet56.py:$cell$more" --config.seed="$seed" \
      --config.dtype=bfloat16 --config.steps_per_call="$steps_per_call" --config.baselines="$rows" \
      --workdir="$workdir/${cell%%,budget*}/$seed"
  done
done
python -m experiments.report "$workdir" --out="$workdir/report"
