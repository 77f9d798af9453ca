"""Files that claim or unpack to far more than they hold: refused before the memory or the time is spent.

They are read by one child process whose address space and processor time are bounded by the system.
"""

import gzip
import importlib.util
import io
import json
import resource
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

ROOM = 1 << 30  # bytes of address space beyond those of the imports
SECONDS = 60  # of processor time for all of them
EACH = 5.0  # for one


def zeros(total: int) -> bytes:
    """A raw deflate stream of at least `total` zeros, made in a moment: blocks after a full flush can be repeated."""
    block = 1 << 24
    pack = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return (pack.compress(bytes(block)) + pack.flush(zlib.Z_FULL_FLUSH)) * -(-total // block)


def gzipped(start: bytes, total: int) -> bytes:
    """`start` and then zeros, as gzip without its end."""
    head = gzip.compress(start)[:10]
    pack = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return head + pack.compress(start) + pack.flush(zlib.Z_FULL_FLUSH) + zeros(total)


def nifti(shape: tuple[int, ...], offset: float = 352, dtype: type = np.uint8) -> bytes:
    import nibabel

    header = nibabel.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(dtype)
    header["vox_offset"], header["magic"] = offset, b"n+1"
    return header.binaryblock + bytes(4)


def nifti2(offset: int) -> bytes:
    import nibabel

    header = nibabel.Nifti2Header()
    header.set_data_shape((10, 10, 10))
    header.set_data_dtype(np.uint8)
    header["vox_offset"], header["magic"] = offset, b"n+2\0\r\n\x1a\n"
    return header.binaryblock + bytes(4)


def npy(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def npz(members: int, each: int) -> bytes:
    """A zip whose `members` names all mean the same packed bytes, an array of `each` zeros."""
    head = npy((1, each // 1000, 1000))
    pack = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = pack.compress(head) + pack.flush(zlib.Z_FULL_FLUSH) + zeros(each)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a0.npy", packed)
        info = archive.infolist()[0]
        info.compress_type, info.file_size, info.compress_size = zipfile.ZIP_DEFLATED, len(head) + each, len(packed)
        for number in range(1, members):
            twin = zipfile.ZipInfo(f"a{number}.npy")
            for name in ("compress_type", "file_size", "compress_size", "header_offset", "CRC"):
                setattr(twin, name, getattr(info, name))
            archive.filelist.append(twin)
            archive.NameToInfo[twin.filename] = twin
        archive._didModify = True
    return stream.getvalue()


def meta(packed: str) -> bytes:
    body = zlib.compress(bytes(1000))
    header = "ObjectType = Image\nNDims = 3\nDimSize = 10 10 10\nElementType = MET_UCHAR\nBinaryData = True\n"
    size = packed.format(size=len(body), less=len(body) - 1)
    return f"{header}CompressedData = True\n{size}ElementDataFile = LOCAL\n".encode() + body


BOMBS = {
    "offset.nii": lambda: nifti((10, 10, 10), 6e9) + bytes(1000),
    "offset.nii.gz": lambda: gzipped(nifti((10, 10, 10), 6e9), 6 * 10**9),
    "offset-nan.nii.gz": lambda: gzip.compress(nifti((10, 10, 10), float("nan")) + bytes(1000)),
    "offset-below.nii": lambda: nifti((10, 10, 10), -6e9) + bytes(1000),
    "offset-two.nii": lambda: nifti2(2**62) + bytes(1000),
    "offset-two-below.nii": lambda: nifti2(-(2**62)) + bytes(1000),
    "voxels.nii.gz": lambda: gzipped(nifti((2000, 2000, 1500)), 6 * 10**9),
    "series.nii.gz": lambda: gzipped(nifti((200, 200, 150, 1000)), 6 * 10**9),
    "wide.nii.gz": lambda: gzipped(nifti((1000, 1000, 750), dtype=np.float64), 6 * 10**9),
    "behind.nii.gz": lambda: gzipped(nifti((10, 10, 10)), 6 * 10**9),
    "claims.nii": lambda: nifti((30000, 30000, 30000)) + bytes(1000),
    "member.npz": lambda: npz(1, 6 * 10**9),
    "members.npz": lambda: npz(1000, 10**9),
    "claims.npy": lambda: npy((10**6, 10**6)) + bytes(100),
    "size.mha": lambda: meta("CompressedDataSize = 1000000000000\n"),
    "size-below.mha": lambda: meta("CompressedDataSize = -1\n"),
    "size-long.mha": lambda: meta("CompressedDataSize = " + "9" * 40 + "\n"),
    "size-less.mha": lambda: meta("CompressedDataSize = {less}\n"),
    "size-none.mha": lambda: meta(""),
}
WHOLE = {
    "whole.nii.gz": lambda: gzip.compress(nifti((10, 10, 10)) + bytes(range(250)) * 4),
    "extension.nii.gz": lambda: gzip.compress(nifti((10, 10, 10), 1 << 22) + bytes((1 << 22) - 352) + bytes(1000)),
    "extension.nii": lambda: nifti((10, 10, 10), 1 << 22) + bytes((1 << 22) - 352) + bytes(1000),
    "behind-a-little.nii.gz": lambda: gzip.compress(nifti((10, 10, 10)) + bytes(1000) + bytes(1 << 22)),
    "size.mha": lambda: meta("CompressedDataSize = {size}\n"),
}


def frames(folder: Path) -> list[str]:
    """DICOM whose compressed frames are of 60000 x 60000 values, of headers that say 64 x 64; their names."""
    from pydicom import uid
    from pydicom.encaps import encapsulate

    spec = importlib.util.spec_from_file_location("dicom_conftest", Path(__file__).with_name("conftest.py"))
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    side = (60000).to_bytes(2, "big") * 2
    wide = (60000).to_bytes(4, "big") * 2
    jpeg = b"\xff\xd8\xff\xe0\x00\x04ab\xff{kind}\x00\x0b\x08" + side + b"\x01\x01\x11\x00"
    streams = {
        "j2k": (uid.JPEG2000Lossless, b"\xff\x4f\xff\x51\x00\x29\x00\x00" + wide + bytes(8) + wide + bytes(8)
                + b"\x00\x01\x07\x01\x01\xff\x93"),
        "jpeg": (uid.JPEGBaseline8Bit, jpeg.replace(b"{kind}", b"\xc0")),
        "lossless": (uid.JPEGLosslessSV1, jpeg.replace(b"{kind}", b"\xc3")),
        "jpegls": (uid.JPEGLSLossless, jpeg.replace(b"{kind}", b"\xf7")),
    }  # fmt: skip
    for name, (syntax, stream) in streams.items():
        data = made.header(Modality="US", SOPClassUID=uid.UltrasoundImageStorage)
        made.put_pixels(data, np.zeros((64, 64), np.uint8))
        data.file_meta.TransferSyntaxUID = syntax
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        data.PixelData = encapsulate([stream + bytes(100)])
        data["PixelData"].is_undefined_length = True
        data.save_as(folder / f"{name}.dcm", enforce_file_format=True)
    return [f"{name}.dcm" for name in streams]


def child(folder: Path, names: list[str]) -> None:
    """Reads each file; a line of JSON for each: what came of it, and how long it took."""
    import SimpleITK  # noqa: F401 - its address space is not the file's

    from scanfoundry.datasets.readers import ReadError, Source, read
    from scanfoundry.datasets.readers.dicom import read_image

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    for name in names:
        begun = time.process_time()
        try:
            if name.endswith(".dcm"):
                scans = list(read_image(Source.of_files(folder, "dicom-image", (name,))))
            else:
                scans = read(folder / name)
            said = f"{len(scans)} scans"
        except ReadError as error:
            said = str(error)
        except Exception as error:
            said = f"RAISED {type(error).__name__}: {error}"
        print(json.dumps([name, said, time.process_time() - begun]), flush=True)


def read_by_child(folder: Path, names: list[str]) -> dict[str, tuple[str, float]]:
    done = subprocess.run(
        [sys.executable, __file__, str(folder), *names], capture_output=True, text=True, timeout=300, check=False
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert done.returncode == 0, f"ended by {done.returncode} after {lines[-1:]}: {done.stderr[-1000:]}"
    return {name: (said, seconds) for name, said, seconds in lines}


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the child's own size is read from /proc")
def test_bombs_are_refused_within_bounds(tmp_path: Path) -> None:
    for folder, files in (("bombs", BOMBS), ("whole", WHOLE)):
        (tmp_path / folder).mkdir()
        for name, make in files.items():
            (tmp_path / folder / name).write_bytes(make())
    names = [f"bombs/{name}" for name in [*BOMBS, *frames(tmp_path / "bombs")]]
    found = read_by_child(tmp_path, [*names, *(f"whole/{name}" for name in WHOLE)])
    for name in names:
        said, seconds = found[name]
        assert "scans" not in said.split()[1:2], f"{name} was read"
        assert "RAISED" not in said, (name, said)
        assert "memory" not in said, f"{name} was refused by the system alone: {said}"
        assert str(tmp_path) not in said
        assert seconds < EACH, (name, seconds)
    assert {name: found[f"whole/{name}"][0] for name in WHOLE} == dict.fromkeys(WHOLE, "1 scans")


if __name__ == "__main__":
    child(Path(sys.argv[1]), sys.argv[2:])
