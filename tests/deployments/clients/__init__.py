"""Third-party clients against the served application, in an environment of their own."""
