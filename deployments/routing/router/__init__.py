"""Serve's routers, and what an ingress knows of its engines when one is chosen."""
