"""How files store weights: layouts, names and number types."""
