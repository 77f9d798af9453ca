"""The configuration of a pre-training run, section by section."""
