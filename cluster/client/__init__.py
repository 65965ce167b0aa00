"""Clients of the HTTP API: ``from cluster.client import Client, AsyncClient``."""

from cluster.client.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client"]
