"""The parts of `gpu.py`: what a GPU is asked, within a budget of time, each part on its own."""
