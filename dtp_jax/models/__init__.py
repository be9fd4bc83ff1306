"""Networks as plain Linen modules: no mask inside, names as in the papers."""

from dtp_jax.models.decoder import Decoder
from dtp_jax.models.from_torch import from_torch
from dtp_jax.models.lenet import LeNet
from dtp_jax.models.mobilenet import MobileNetV2
from dtp_jax.models.resnet import ResNet
from dtp_jax.models.resnet_cifar import CifarResNet
from dtp_jax.models.vgg import VGG
from dtp_jax.models.vit import ViT

__all__ = ['VGG', 'CifarResNet', 'Decoder', 'LeNet', 'MobileNetV2', 'ResNet', 'ViT', 'from_torch']
