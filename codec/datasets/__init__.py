"""Datasets: where each comes from, how it is laid out, and what makes it ready for training."""
