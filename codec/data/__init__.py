"""Clips of folders and manifests, and token stores made from them."""
