"""How much to keep: budgets, their costs in exact integers, and the transport problems of them."""

from dtp_jax.budget.budget import Account, Budget, Scope, account, cost_of, problems

__all__ = ['Account', 'Budget', 'Scope', 'account', 'cost_of', 'problems']
