"""Single requests on simulated engines."""
