"""How much to keep: budgets, what they come to on a network, and the transport problems of them."""

from dtp_jax.budget.budget import Budget, Scope
from dtp_jax.budget.resolve import Account, Resolved, resolve

__all__ = ['Account', 'Budget', 'Resolved', 'Scope', 'resolve']
