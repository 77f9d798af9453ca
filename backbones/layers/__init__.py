"""Layers that several backbones share, and what pre-training and fine-tuning may build on them."""
