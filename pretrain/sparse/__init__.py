"""Convolutional encoders on visible blocks alone: blocks are packed along the batch axis, hidden ones cost nothing."""
