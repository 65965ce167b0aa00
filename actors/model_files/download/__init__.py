"""Models that have to be fetched first."""
