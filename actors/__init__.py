"""The engine: scheduler, KV cache, model runner, models, and the Ray actor that owns one."""
