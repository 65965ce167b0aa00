"""What any HTTP API of generations needs, whichever dialect it speaks."""
