"""A sample as bytes and back, exact to the last bit: a header in JSON, then each array as a blosc2 frame."""

import json
import struct
import zlib
from typing import Any

import blosc2
import numpy as np
import numpy.typing as npt
import torch

from scanfoundry.finetune.sample import Sample

_HEAD = struct.Struct("<II")  # CRC-32 of all that follows; bytes of the header
_CODEC = {"codec": blosc2.Codec.ZSTD, "clevel": 1, "nthreads": 1}
_CHUNK = 1 << 22  # bytes that are compressed at a time
_FACTS = ("fill", "shape", "spacing", "orientation", "voxel_mm3")

TargetType = type | None


class NotStorable(Exception):
    """A sample, of a plug-in's task, holds what this file format does not know."""


def pack(sample: Sample[Any], target_type: TargetType) -> bytes:
    """The content of a file that holds `sample`.

    Args:
        sample: any sample but for the features of an encoder, which are left out.
        target_type: of targets that are dataclasses of arrays, their class.

    Raises:
        NotStorable: the target is neither a number, an array nor a `target_type`, or the sample is more than a
            `Sample`.
    """
    if type(sample) is not Sample:
        raise NotStorable(type(sample).__name__)
    frames: list[bytes] = []
    same = sample.target is sample.truth
    header = {
        "facts": {name: getattr(sample, name) for name in _FACTS},
        "image": _put(sample.image.numpy(), frames),
        "present": None if sample.present is None else sample.present.tolist(),
        "truth": _put_target(sample.truth, target_type, frames),
        "target": None if same else _put_target(sample.target, target_type, frames),
        "same": same,
    }
    try:
        text = json.dumps(header).encode()
    except TypeError as error:
        raise NotStorable(str(error)) from error
    body = struct.pack("<I", len(text)) + text + b"".join(frames)
    return struct.pack("<I", zlib.crc32(body)) + body


def unpack(content: bytes, target_type: TargetType) -> Sample[Any]:
    """The sample that `pack` was given.

    Raises:
        ValueError: the content is damaged.
    """
    if len(content) < _HEAD.size:
        raise ValueError("the file is cut off")
    checksum, length = _HEAD.unpack_from(content)
    if zlib.crc32(memoryview(content)[4:]) != checksum:
        raise ValueError("its checksum is wrong")
    start = _HEAD.size + length
    header = json.loads(content[_HEAD.size : start])
    frames = memoryview(content)[start:]
    facts = header["facts"]
    truth = _target(header["truth"], target_type, frames)
    return Sample(
        image=torch.from_numpy(_array(header["image"], frames)),
        fill=facts["fill"],
        shape=tuple(facts["shape"]),
        spacing=tuple(facts["spacing"]),
        orientation=facts["orientation"],
        target=truth if header["same"] else _target(header["target"], target_type, frames),
        truth=truth,
        present=None if header["present"] is None else torch.tensor(header["present"]),
        voxel_mm3=facts["voxel_mm3"],
    )


def _put_target(target: Any, target_type: TargetType, frames: list[bytes]) -> dict[str, Any]:
    if target is None or type(target) in (bool, int, float):
        return {"number": target}
    if isinstance(target, np.ndarray):
        return {"array": _put(target, frames)}
    if target_type is not None and type(target) is target_type:
        arrays = [value for value in vars(target).values() if value is not None]  # in the order of its fields
        if all(isinstance(array, np.ndarray) for array in arrays):
            return {"arrays": [_put(array, frames) for array in arrays]}
    raise NotStorable(type(target).__name__)


def _target(entry: dict[str, Any], target_type: TargetType, frames: memoryview) -> Any:
    if "arrays" in entry:
        if target_type is None:
            raise ValueError("it holds the target of another task")
        return target_type(*(_array(each, frames) for each in entry["arrays"]))
    return _array(entry["array"], frames) if "array" in entry else entry["number"]


def _put(array: npt.NDArray[Any], frames: list[bytes]) -> dict[str, Any]:
    """Appends a frame; returns what else is needed to make the same array of it, its order in memory included: sums
    are computed in that order."""
    if array.dtype.kind not in "biufcSU":  # such as addresses of objects
        raise NotStorable(str(array.dtype))
    axes = sorted(range(array.ndim), key=lambda axis: -array.strides[axis])
    flat = np.ascontiguousarray(array.transpose(axes))
    where = sum(map(len, frames))
    if flat.size:
        parameters = blosc2.CParams(**_CODEC, typesize=array.itemsize)
        frames.append(blosc2.SChunk(chunksize=_CHUNK, data=flat.reshape(-1), cparams=parameters).to_cframe())
    entry = {"dtype": array.dtype.str, "shape": flat.shape, "axes": axes, "start": where}
    return entry | {"bytes": len(frames[-1]) if flat.size else 0}


def _array(entry: dict[str, Any], frames: memoryview) -> npt.NDArray[Any]:
    flat = np.empty(entry["shape"], entry["dtype"])
    if flat.size:
        frame = bytes(frames[entry["start"] : entry["start"] + entry["bytes"]])
        stored = blosc2.schunk_from_cframe(frame)
        stored.get_slice(0, flat.size, out=flat)
    return flat.transpose(np.argsort(entry["axes"]))
