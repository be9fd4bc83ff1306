"""Every field of a config and what it means; the base of all configs, which say what they change.

The values are those of the smallest thing that runs: LeNet-5 on 5,000 MNIST digits that need no
download, single weights, SGD with a cosine. A config file starts from `get_config()` here and from
no other experiment's file.
"""

from typing import Any

import ml_collections
from ml_collections.config_dict import placeholder

__all__ = ['get_config']


def get_config() -> Any:
  """The base config, anew at every call."""
  config: Any = ml_collections.ConfigDict()
  config.seed = 0  # of the weights, the order of the data and the augmentation
  config.imports = ()  # modules imported before methods are looked up: they register their own

  # What is compared.
  config.method = 'transportation'  # a name in dtp_jax.methods.METHODS
  config.methods = {'transportation': {'preset': 'default'}}  # options of each method, by its name
  config.row = placeholder(str)  # name of the run in tables; default: its method
  config.baselines = ()  # rows run beside it, forked from one dense network
  config.rows = ml_collections.ConfigDict()  # fields a baseline changes, by its name; else a method

  # What is pruned, and how much of it stays.
  config.prune = ml_collections.ConfigDict()
  config.prune.granularity = 'weights'  # weights, nm, blocks, channels
  config.prune.keep = 0.1  # fraction that stays, in [0, 1], in the unit below
  config.prune.count = placeholder(int)  # the amount itself instead
  config.prune.of = 'count'  # unit; channels: params, macs or the .json of a latency table too
  config.prune.scope = 'global'  # global, layer, erk, row; channels know the first two
  config.prune.ratios = ()  # per layer instead: pairs (glob pattern, fraction); scope 'layer'
  config.prune.min_keep = 1  # channels that every group keeps
  config.prune.multiple_of = '1'  # of channels kept, for hardware; 'auto': what it is fast at
  config.prune.importance = 'l2'  # of channels: l1, l2, bn
  config.prune.exclude = ()  # glob patterns of paths that stay dense
  config.prune.group = 4  # of nm: m
  config.prune.block = (4, 4)  # of blocks: (in, out)

  # The network.
  config.model = ml_collections.ConfigDict()
  config.model.name = 'lenet'  # see MODELS in dtp_jax/train/recipe.py; more fields: its attributes
  config.dtype = 'float32'  # of its arithmetic, or bfloat16; weights, scores, sums stay float32
  config.remat = False  # keep products and convolutions alone for the backward pass: less memory
  config.pretrained = ''  # path of a state dict in torchvision's layout to start from, or ''

  # The data.
  config.data = ml_collections.ConfigDict()
  config.data.name = 'mnist_mini'  # see NAMES in dtp_jax/data/loading.py
  config.data.data_dir = placeholder(str)  # default: that of tensorflow-datasets
  config.data.validation = 0  # training images held out, evaluated in place of the test split
  config.data.batch_size = 64  # in training
  config.data.eval_batch_size = 500  # in evaluation; its size changes no result
  config.data.crop_padding = 0  # pixels of a random shift
  config.data.flip = False  # mirror at random
  config.data.window = 128  # of text (python_stdlib) only: bytes predicted in each example
  # Of streamed data (imagenet2012) only; see Options in dtp_jax/data/streamed.py.
  config.data.image_size = 224  # pixels of a crop's side
  config.data.resize = 256  # pixels of the shorter side in evaluation
  config.data.workers = 0  # processes that decode; 0: threads of this one
  config.data.threads = 8  # that read and decode, in each process
  config.data.prefetch = 8  # batches decoded ahead

  # The devices: training batches are split along 'data', kernels and their scores along 'model'.
  config.mesh = ml_collections.ConfigDict()
  config.mesh.data = -1  # devices along it; -1: all that the other axis leaves
  config.mesh.model = 1  # devices that share each kernel with its scores, log-odds and optimizer

  # The stages, in epochs of the training split.
  config.stages = ml_collections.ConfigDict()
  config.stages.dense = 10.0  # nothing is pruned yet
  config.stages.soft = 10.0  # weights and soft masks together
  config.stages.hard = 10.0  # fine-tuning under the hard mask

  config.steps_per_call = 1  # steps in one call of the device; more where a step is very short
  config.accumulate = 1  # parts that the gradient of a batch is computed in, one after the other

  config.on_nan = 'stop'  # where a loss is NaN or infinite; or skip: that step changes nothing

  # The optimizer of the weights; scores have their method's own, or else Adam.
  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.name = 'sgd'  # sgd, adamw
  config.optimizer.learning_rate = 0.1  # dense stage
  config.optimizer.prune_learning_rate = 0.05  # soft and hard stage together
  config.optimizer.schedule = 'cosine'  # of both rates: cosine to 0, or steps by a factor of 0.1
  config.optimizer.steps = (0.5, 0.75)  # of 'steps': where in the dense stage, as fractions
  config.optimizer.prune_steps = (0.5, 0.75)  # where in the soft and hard stage together
  config.optimizer.warmup = 0.05  # fraction of the dense stage
  config.optimizer.momentum = 0.9  # of sgd
  config.optimizer.nesterov = True  # of sgd
  config.optimizer.weight_decay = 5e-4  # kernels only
  config.optimizer.clip_norm = placeholder(float)  # largest norm of the weights' gradient
  config.optimizer.label_smoothing = 0.0  # share of the target that is spread over the classes
  config.optimizer.score_learning_rate = 1e-3  # of Adam, where scores are learned (preset='paper')

  # What is written while it runs.
  config.log_every = 50  # steps between fetches of the metrics
  config.eval_every = 1.0  # epochs between evaluations
  config.lock()  # a misspelt field is refused where it is set
  for section in ('methods', 'rows', 'model'):  # their fields have names of their own
    getattr(config, section).unlock()
  return config
