"""Bytes and samples: audio files, the .codec container, the synthesizer; knows no networks."""
