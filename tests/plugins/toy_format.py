"""A file format from outside the package: a line of text with the size and the spacing, then the voxels as uint16."""

from collections.abc import Iterator

import numpy as np

from scanfoundry.datasets.readers import FileFormat, ReadError, Scan, Source


def read_toy(source: Source) -> Iterator[Scan]:
    """The one scan of a .toy file."""
    head, _, content = source.paths[0].read_bytes().partition(b"\n")
    name, *numbers = head.decode("ascii", "replace").split()
    if name != "TOY" or len(numbers) != 6:
        raise ReadError("not a readable TOY: it does not begin with 'TOY D H W' and the spacing")
    shape = tuple(int(number) for number in numbers[:3])
    spacing = tuple(float(number) for number in numbers[3:])
    if len(content) != 2 * np.prod(shape):
        raise ReadError("cut short")
    yield Scan(np.frombuffer(content, "<u2").reshape(1, *shape), spacing)


PLUGINS = {"format": [FileFormat("toy", read_toy, (".toy",))]}
