"""GGUF files: header, metadata, tensors, and parts that belong together."""
