"""What operators ask of a running application."""
