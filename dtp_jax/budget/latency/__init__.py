"""Budgets in time: measured tables of what operators take at each width."""

from dtp_jax.budget.latency.table import LatencyTable, Timed
from dtp_jax.budget.latency.timing import Timing, interleaved

__all__ = ['LatencyTable', 'Timed', 'Timing', 'interleaved']
