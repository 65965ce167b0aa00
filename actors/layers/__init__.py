"""Parts of a forward pass that model families share."""
