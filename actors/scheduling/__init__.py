"""Which sequence computes how many tokens in the next step; plain Python that imports nothing else of ``actors``."""
