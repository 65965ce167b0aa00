"""A model's files from an engine that has them, for nodes without a shared disk."""
