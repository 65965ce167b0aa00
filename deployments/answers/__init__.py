"""An answer, whole or as a stream of events, made from tokens."""
