"""How much memory a run needs on each rank, known before it starts."""
