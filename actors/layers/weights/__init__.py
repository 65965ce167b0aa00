"""How the weight of a linear layer is stored: one file a kind."""
