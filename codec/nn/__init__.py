"""Layers. They know no files, no recipes and no training."""
