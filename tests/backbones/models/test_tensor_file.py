"""Files that safetensors itself reads back, from any mixture of tensors."""

import contextlib
import math
import zlib

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from safetensors import safe_open
from safetensors.torch import load_file

from scanfoundry.backbones.models.tensor_file import DTYPES, TensorFile, write_tensors

TENSORS = st.dictionaries(
    st.text(min_size=1, max_size=9).filter(lambda key: key != "__metadata__"),
    st.tuples(st.sampled_from(sorted(DTYPES, key=str)), array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)),
    max_size=5,
)


@settings(max_examples=60, deadline=None)
@given(kinds=TENSORS, transpose=st.booleans())
def test_safetensors_reads_what_was_streamed(tmp_path_factory, kinds, transpose):
    tensors = {key: (100 * torch.randn(shape)).to(dtype) for key, (dtype, shape) in kinds.items()}
    if transpose:  # not contiguous
        tensors = {key: value.mT if value.dim() > 1 else value for key, value in tensors.items()}
    path = tmp_path_factory.mktemp("file") / "x.safetensors"
    written = write_tensors(path, tensors, {"note": "ö"})
    content = path.read_bytes()
    assert (written.name, written.bytes, written.crc32) == (path.name, len(content), zlib.crc32(content))
    read = load_file(path)
    assert read.keys() == tensors.keys()
    for key, value in tensors.items():
        assert read[key].dtype == value.dtype
        assert torch.equal(read[key], value.contiguous())
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"note": "ö"}
    ours = TensorFile(path)
    assert ours.metadata == {"note": "ö"}
    assert sorted(ours.names()) == sorted(tensors)
    for key, value in tensors.items():
        assert torch.equal(ours.tensor(key), value.contiguous())
        middle = value.numel() // 2
        out = torch.empty(value.numel() - middle, dtype=torch.float64)  # another dtype than most files have
        ours.read(key, middle, out)
        assert torch.equal(out, value.contiguous().view(-1)[middle:].double())
    ours.close()


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 400), flip=st.integers(0, 150), bit=st.integers(0, 7))
def test_a_damaged_file_is_a_value_error(tmp_path_factory, cut: int, flip: int, bit: int):
    path = tmp_path_factory.mktemp("file") / "x.safetensors"
    write_tensors(path, {"one": torch.ones(5, 3), "two": torch.ones(7)}, {})
    content = bytearray(path.read_bytes())
    content[flip % len(content)] ^= 1 << bit
    path.write_bytes(content[: len(content) - cut])
    try:
        file = TensorFile(path)
    except (ValueError, KeyError, TypeError, AttributeError):  # what the reader of a checkpoint expects
        return
    with contextlib.closing(file), contextlib.suppress(ValueError):
        for key in file.names():
            assert file.tensor(key).numel() == math.prod(file.shape(key))
