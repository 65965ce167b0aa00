"""Where the engine computes: memory, streams and clocks of the CPU and of a GPU."""
