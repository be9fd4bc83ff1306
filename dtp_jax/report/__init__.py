"""Reports: of one run and its baselines (`run`), and over many runs (`rows` to `page`)."""

from dtp_jax.report.run import table, write_report

__all__ = ['table', 'write_report']
