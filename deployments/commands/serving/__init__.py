"""What ``bireme serve`` shows: the stages of a start, where the server is, and a line a request."""
