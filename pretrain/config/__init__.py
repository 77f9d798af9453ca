"""What a pre-training run is told, section by section."""
