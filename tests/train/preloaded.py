"""What the server of `victims` has in memory when it forks: nothing that asks for a device."""

import tests.train.conftest  # noqa: F401
from dtp_jax.data import load

load({'name': 'mnist_mini'})
