"""LeNet-5 on 5,000 MNIST digits, pruned to 5 % of its weights; needs no download.

Paper: Li et al., Differentiable Transportation Pruning, ICCV 2023 (our start, ramp and deadline).
Command: python -m experiments.train --config=configs/mnist_lenet.py --workdir=runs/mnist_lenet
Hardware: 2 CPU cores. Time and expected result: see the table in README.md.
"""

from typing import Any

import ml_collections
from ml_collections.config_dict import placeholder

from configs.arguments import parse


def get_config(arg: str = '') -> Any:
  """The config; `:runlocal` shrinks every stage to a few steps."""
  choice = parse(arg)
  config: Any = ml_collections.ConfigDict()
  config.seed = 0

  config.method = 'transportation'  # see dtp_jax/train/recipe.py for all
  config.baselines = ('dense', 'magnitude')  # forked from the end of the dense stage
  config.rows = ml_collections.ConfigDict()  # fields a baseline changes, by its name
  config.row = placeholder(str)  # name of the run in tables; default: its method
  config.methods = {'transportation': {'epsilon': 1.0}}  # options of each method, by its name

  config.prune = ml_collections.ConfigDict()
  config.prune.granularity = 'weights'  # weights, nm, blocks, channels
  config.prune.keep = 0.05  # fraction of the weights, in [0, 1]
  config.prune.count = placeholder(int)  # the amount itself instead, in the unit below
  config.prune.of = 'count'  # unit; channels: params, macs or the .json of a latency table too
  config.prune.scope = 'global'  # global, layer, erk, row; channels know the first two
  config.prune.ratios = ()  # per layer instead: pairs (glob pattern, fraction); scope 'layer'
  config.prune.min_keep = 1  # channels that every group keeps
  config.prune.multiple_of = 1  # of channels kept, for hardware
  config.prune.importance = 'l2'  # of channels: l1, l2, bn
  config.prune.exclude = ()  # glob patterns of paths that stay dense
  config.prune.group = 4  # of nm: m
  config.prune.block = (4, 4)  # of blocks: (in, out)

  config.model = ml_collections.ConfigDict({'name': 'lenet'})

  config.data = ml_collections.ConfigDict()
  config.data.name = 'mnist_mini'
  config.data.data_dir = placeholder(str)  # default: that of tensorflow-datasets
  config.data.validation = 0  # training images held out and evaluated instead of the test split
  config.data.batch_size = 64
  config.data.eval_batch_size = 500
  config.data.crop_padding = 2  # pixels
  config.data.flip = False
  # imagenet2012 is streamed; its configs have image_size, resize, workers, threads and prefetch:
  # see Options in dtp_jax/data/streamed.py.

  config.stages = ml_collections.ConfigDict()  # epochs
  config.stages.dense = 10.0
  config.stages.soft = 12.0
  config.stages.hard = 8.0

  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.name = 'sgd'
  config.optimizer.learning_rate = 0.05  # dense stage
  config.optimizer.prune_learning_rate = 0.05  # soft and hard stage together
  config.optimizer.schedule = 'cosine'  # of both rates: cosine to 0, or steps by a factor of 0.1
  config.optimizer.steps = (0.5, 0.75)  # of 'steps': where in the dense stage, as fractions
  config.optimizer.prune_steps = (0.5, 0.75)  # where in the soft and hard stage together
  config.optimizer.warmup = 0.05  # fraction of the dense stage
  config.optimizer.momentum = 0.9
  config.optimizer.nesterov = True
  config.optimizer.weight_decay = 5e-4  # kernels only
  config.optimizer.label_smoothing = 0.0
  config.optimizer.score_learning_rate = 1e-3  # Adam

  config.log_every = 50  # steps between fetches of the metrics
  config.eval_every = 2.0  # epochs

  if choice.runlocal:
    config.stages.dense = config.stages.soft = config.stages.hard = 0.1
    config.eval_every = 0.1
  return config
