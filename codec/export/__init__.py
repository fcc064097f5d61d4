"""Models in formats of other runtimes."""
