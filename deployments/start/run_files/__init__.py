"""Folders and files of a run: who may read them, and what earlier runs left."""
