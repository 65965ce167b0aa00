"""The process that a person starts and signals, which has no Ray inside, and the server below it."""
