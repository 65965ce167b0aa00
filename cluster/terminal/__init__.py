"""The commands that talk to a running server, one file a command."""
