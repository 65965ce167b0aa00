"""Custom ops of the engine: kernels without Paddle headers, bindings, one cached build, typed wrappers, NumPy twins."""
