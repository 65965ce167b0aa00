"""What is true of the whole cluster and needs no accelerator: configuration, request types, client, journal, policies."""

__version__ = "0.4.0"
