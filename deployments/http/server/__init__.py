"""What every HTTP server of Ray Serve gets in its own process."""
