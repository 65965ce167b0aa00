"""Who waits at an ingress, and in which order they go on."""
