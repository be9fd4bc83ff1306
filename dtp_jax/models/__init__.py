"""Networks as plain Linen modules: no mask inside, names as in the papers."""

from dtp_jax.models.decoder import Decoder, Stretch
from dtp_jax.models.from_llama import from_llama
from dtp_jax.models.from_torch import from_torch
from dtp_jax.models.lenet import LeNet
from dtp_jax.models.mobilenet import MobileNetV2
from dtp_jax.models.resnet import ResNet
from dtp_jax.models.resnet_cifar import CifarResNet
from dtp_jax.models.vgg import VGG
from dtp_jax.models.vit import ViT

__all__ = [
  'VGG',
  'CifarResNet',
  'Decoder',
  'LeNet',
  'MobileNetV2',
  'ResNet',
  'Stretch',
  'ViT',
  'from_llama',
  'from_torch',
]
