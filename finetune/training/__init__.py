"""How a model is trained: loop, losses, sampling, optimiser, recipes, members of an ensemble."""
