"""From an ingress to its engines: choosing one, following its tokens, going on elsewhere."""
