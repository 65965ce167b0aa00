"""Model architectures on our ops."""
