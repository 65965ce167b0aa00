"""A fleet under a virtual clock: recorded load, a scaling policy, and what it costs. Uses nothing of Serve."""
