"""Quantizers: vector, residual, scalar, mixture, gain-shape."""
