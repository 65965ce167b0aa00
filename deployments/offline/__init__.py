"""The model in the caller's own process, without Ray and HTTP."""
