"""The Ray Serve application: OpenAI-compatible ingress, engine replicas, and what travels between them."""
