"""What a request of OpenAI's API may say: its fields, their checks, and the prompt."""
