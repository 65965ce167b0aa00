"""How engines share the load: pure decisions, without Ray."""
