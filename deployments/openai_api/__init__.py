"""OpenAI's dialect: requests, answers and their chunks."""
