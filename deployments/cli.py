"""The ``bireme`` command: the client's commands, and those that need the whole project."""

from __future__ import annotations

from cluster.cli import app
from deployments.commands import autoscale, config, dashboard, doctor, env, logs, models, serve, simulate

__all__ = ["app", "autoscale", "config", "dashboard", "doctor", "env", "logs", "models", "serve", "simulate"]

if __name__ == "__main__":
    app()
