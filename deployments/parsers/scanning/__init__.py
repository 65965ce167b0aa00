"""What parsers are made of: a text that comes in pieces, events, and calls in the order in which they stand."""
