"""What an answer of OpenAI's API says."""
