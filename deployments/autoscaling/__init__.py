"""Serve's side of the scaling policy: what it is told, where it runs, and what is kept of it."""
