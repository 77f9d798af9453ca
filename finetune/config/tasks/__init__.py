"""The configuration of each task, what it declares of itself, and the registry of all tasks."""
