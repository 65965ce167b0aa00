"""Metrics, stages of a start, and the trace of a request."""
