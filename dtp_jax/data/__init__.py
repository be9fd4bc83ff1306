"""Data: prepare official archives, load them as arrays, feed them to a jitted step."""
