"""Which engine gets a request: pure choices, without Ray."""
