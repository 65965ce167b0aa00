"""What an ingress answers: its paths, what each does, and the application around them."""
