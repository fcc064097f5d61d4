"""Layers, without files, configuration or training."""
