"""What an engine actor knows of its requests: where each is on its way, what it is promised, and what was said of it."""
