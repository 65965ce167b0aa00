"""The engine in one process: scheduler and executor, one step at a time, and the thread that drives it."""
