"""Times and counts of an engine's steps."""
