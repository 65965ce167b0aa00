"""Serve configs that come with the project: ``bireme serve NAME``."""
