"""FreeSurfer's MGH and MGZ: headers by nibabel, voxels as a stream."""

from collections.abc import Iterator

import numpy as np
from nibabel.freesurfer.mghformat import MGHError, MGHHeader

from scanfoundry.datasets.readers.geometry import geometry
from scanfoundry.datasets.readers.guard import reason_of
from scanfoundry.datasets.readers.nifti import DAMAGE, opened
from scanfoundry.datasets.readers.pair import Geometry, scans
from scanfoundry.datasets.readers.scan import ReadError, Scan, Source

_HEADER = 284  # bytes; the voxels follow
_DAMAGE: tuple[type[Exception], ...] = (*DAMAGE, MGHError)
_GOOD_RAS = 28  # where the flag stands, a number of two bytes; nibabel fills in what it finds missing


def read_mgh(source: Source) -> Iterator[Scan]:
    """The scans of a .mgh or .mgz: one, or one per frame (`part` is its number). ReadError says why it is refused.

    Without `goodRASFlag` the file says nothing of sizes and directions: spacing 1, no affine.
    """
    path = source.paths[0]
    try:
        with opened(path) as stream:
            content = stream.read(_HEADER)
            if len(content) < _HEADER or int.from_bytes(content[:4], "big") != 1:
                raise ReadError("not a readable MGH: it does not begin with its header")
            header = MGHHeader(content, check=False)
            place = _geometry(header, content)
            yield from scans(stream, header, 0, place, path.stat().st_size)
    except _DAMAGE as error:
        raise ReadError(f"not a readable MGH: {reason_of(error, path)}") from error


def _geometry(header: MGHHeader, content: bytes) -> Geometry:
    if not int.from_bytes(content[_GOOD_RAS : _GOOD_RAS + 2], "big"):
        return (1.0, 1.0, 1.0), None, ""
    affine = np.asarray(header.get_affine(), np.float64)
    spacing, orientation = geometry(affine)
    return spacing, affine, orientation
