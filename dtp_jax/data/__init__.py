"""Data sets: prepared once from official archives, loaded by name, batches for a jitted step."""

from dtp_jax.data.dataset import Dataset as Dataset
from dtp_jax.data.dataset import Resident as Resident
from dtp_jax.data.loading import load as load
from dtp_jax.data.text import Text as Text
