"""Measures of codecs, of language models and of what these generate."""
