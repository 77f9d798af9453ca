"""The default size of a shard. This module imports nothing: the command line shows the size in its help."""

SHARD_MB = 256  # of source files, where nobody says otherwise
