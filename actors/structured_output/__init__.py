"""Answers whose text follows a grammar: compiled grammars, and which tokens a request may take next."""
