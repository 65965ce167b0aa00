"""Finding, reading and checking the files of a model."""
