"""Training: data, losses, discriminators, the loop and its record."""
