"""Recipes (YAML) and the loading of configurations. The lowest layer: imports nothing of ours."""
