"""What the check of the cases found, for the worker processes of a study: none of them reads all cases again.

It lies in a file without a name, which no other process can open or change, and is read through its descriptor.
"""

import os
import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from scanfoundry.finetune.checks.check import Checked


@contextmanager
def shared_check(checked: Checked) -> Iterator[int]:
    """A descriptor for child processes (`pass_fds`), as long as the context lasts."""
    with tempfile.TemporaryFile() as stream:
        pickle.dump(checked, stream)
        stream.flush()
        yield stream.fileno()


def checked_by_parent(descriptor: int) -> Checked:
    """What the process that started this one has found; several processes may read it at once.

    Args:
        descriptor: of `shared_check`. Its content is this program's own: nobody else can write it.
    """
    content = os.pread(descriptor, os.fstat(descriptor).st_size, 0)  # the position is shared with other processes
    found: Checked = pickle.loads(content)
    return found
