"""Training of token language models."""
