"""Reports: of one run folder (`run`), and over many runs (`rows` to `page`)."""

from dtp_jax.report.run import load_summaries, table, write_report

__all__ = ['load_summaries', 'table', 'write_report']
