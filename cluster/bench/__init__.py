"""The load client of ``bireme bench``: it knows HTTP, event streams and clocks, and neither Ray nor Paddle."""
