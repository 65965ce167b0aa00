"""Processes of an engine that are there before the engine is."""
