"""Networks as plain Linen modules: no mask inside, names as in the papers."""

from dtp_jax.models.lenet import LeNet
from dtp_jax.models.resnet_cifar import CifarResNet

__all__ = ['CifarResNet', 'LeNet']
