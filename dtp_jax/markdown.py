"""Tables as text."""

from typing import NamedTuple

__all__ = ['Table']


class Table(NamedTuple):
  """A table as text: a header and rows of as many cells; the first `texts` columns are words."""

  header: tuple[str, ...]
  rows: tuple[tuple[str, ...], ...]
  texts: int = 1

  def __str__(self) -> str:
    """As Markdown, words to the left and numbers to the right."""
    rule = ('---',) * self.texts + ('--:',) * (len(self.header) - self.texts)
    lines = [f'| {" | ".join(self.header)} |', f'|{"|".join(rule)}|']
    lines += [f'| {" | ".join(row)} |' for row in self.rows]
    return '\n'.join(lines) + '\n'
