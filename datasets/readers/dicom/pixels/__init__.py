"""Stored pixels: whether all of them are there, and decoding them without trust in the file."""
