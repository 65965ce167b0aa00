"""Code that runs beside the interpreter, and what calls it."""
