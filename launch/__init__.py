"""The command line, and launching on SLURM or locally."""
