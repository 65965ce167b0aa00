"""The commands that need the whole project, one file a command."""
