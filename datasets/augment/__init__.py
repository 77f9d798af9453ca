"""Augmentation: batched, on the training device, a pure function of each sample's seed."""
