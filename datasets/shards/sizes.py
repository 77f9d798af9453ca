"""The size of a shard. Imports nothing: the command line shows it in its help."""

SHARD_MB = 256  # of source files, where nobody says otherwise
