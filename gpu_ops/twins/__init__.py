"""NumPy twins of the ops: the readable specification, with the same names; they import only NumPy."""
