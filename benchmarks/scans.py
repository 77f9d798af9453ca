"""Benchmark scans made of the real ones: upsampled, mirrored up to size, with the source's own noise put back.

command: python benchmarks/scans.py --data DATA --out runs/scans
Upsampling leaves a scan too smooth, and thereby too easy to compress; so noise is added whose level is measured on
the source at each intensity. CT gets what a scanner writes outside its round field of view: one constant value.
"""

import argparse
import os
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Shape = tuple[int, int, int]  # D, H, W
SOURCES = {
    "ct": ("totalsegmentator_examples", ("example_ct.nii.gz", "pulmonary_ct.nii.gz")),
    "mr": ("brain_tumor_progression_mr", tuple(f"*/{name}.nii.gz" for name in ("t1", "t1gd", "t2", "flair"))),
}
SIZES: dict[str, Shape] = {"ct": (128, 512, 512), "mr": (256, 256, 256)}
OUTSIDE = -1024  # HU that a CT scanner stores outside its field of view
VOLUME = "msd_task04_hippocampus/imagesTr"
IMAGES = ("busi_breast_ultrasound/images", "nih_chestxray8_2class/images")
SIDE = 256


def large(data: Path, folder: Path, count: int, shape: Shape, modality: str, seed: int = 0) -> list[Path]:
    """Write `count` volumes int16 (D, H, W) of `modality` (ct, mr) as .nii.gz; files that are there are kept.

    Each is another scan or another part, size and mirror image of one; the same bytes for the same arguments.
    """
    name, patterns = SOURCES[modality]
    sources = sorted(path for pattern in patterns for path in (data / name).glob(pattern))
    order = np.random.default_rng(seed).permutation(len(sources))
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        path = folder / f"{modality}{number:03d}.nii.gz"
        if not path.exists():
            source = nibabel.load(sources[order[number % len(sources)]])
            voxels = np.asanyarray(source.dataobj).T.astype(np.float32)
            _save(enlarge(voxels, shape, modality, np.random.default_rng([seed, number])), path)
        paths.append(path)
    return paths


def enlarge(voxels: NDArray[np.float32], shape: Shape, modality: str, rng: np.random.Generator) -> NDArray[np.int16]:
    """Cubic upsampling towards equal spacing, mirrored to `shape` from a random place and side, noise added."""
    levels, sigmas = noise_level(voxels)
    wanted = np.array(shape, float)
    factors = np.minimum(wanted / voxels.shape, 5.0)  # slices of MR are 6.5 mm apart: ten times would be a smear
    fine = ndimage.zoom(voxels, factors * rng.uniform(0.9, 1.1), order=3, mode="mirror", prefilter=True)
    np.clip(fine, voxels.min(), voxels.max(), out=fine)  # cubic overshoot
    for axis in np.flatnonzero(rng.integers(0, 2, 3)):
        fine = np.flip(fine, axis)
    spare = [max(0, size - length) + length // 4 for size, length in zip(shape, fine.shape, strict=True)]
    fine = np.pad(fine, [(0, extra) for extra in spare], mode="symmetric")
    starts = [rng.integers(0, length - size + 1) for length, size in zip(fine.shape, shape, strict=True)]
    fine = fine[tuple(slice(start, start + size) for start, size in zip(starts, shape, strict=True))]
    noise = rng.standard_normal(shape, np.float32) * np.interp(fine, levels, sigmas).astype(np.float32)
    lowest = OUTSIDE if modality == "ct" else 0  # of what a scanner stores
    result = np.clip(np.rint(fine + noise), lowest, 32767).astype(np.int16)
    if modality == "ct":
        y, x = np.mgrid[-1 : 1 : shape[1] * 1j, -1 : 1 : shape[2] * 1j]
        result[:, x * x + y * y > 1] = OUTSIDE
    return result


def noise_level(voxels: NDArray[np.float32], bins: int = 8) -> tuple[NDArray, NDArray]:
    """Noise of a scan: intensities (bins,), and the standard deviation (bins,) of the noise there.

    From second differences, which cancel smooth anatomy; their lower quartile and the quietest of the three axes,
    which edges disturb least (0.3186: lower quartile of the magnitude of a standard normal variable).
    """
    edges = np.unique(np.quantile(voxels, np.linspace(0, 1, bins + 1)))
    levels = (edges[:-1] + edges[1:]) / 2
    sigmas = np.full((3, len(levels)), np.inf)
    for axis in range(3):
        differences = np.abs(np.diff(voxels, n=2, axis=axis)) / np.sqrt(6)
        middle = np.take(voxels, range(1, voxels.shape[axis] - 1), axis)
        which = np.clip(np.searchsorted(edges, middle, "right") - 1, 0, len(levels) - 1)
        for number in range(len(levels)):
            sigmas[axis, number] = np.quantile(differences[which == number], 0.25) / 0.3186
    return levels, sigmas.min(axis=0)


def small(data: Path, folder: Path) -> dict[str, Path]:
    """Write the real small scans; the folders by name.

    `own`: hippocampus volumes as they are (float32, uint8). `volumes`: the same, int16, so that one batch can hold
    them all: values that fit are kept, others scaled to 12 bits. `images`: ultrasound and X-ray uint8, 256 x 256.
    """
    folders = {name: folder / name for name in ("own", "volumes", "images")}
    for each in folders.values():
        each.mkdir(parents=True, exist_ok=True)
    for path in sorted((data / VOLUME).glob("*.nii.gz")):
        (folders["own"] / path.name).write_bytes(path.read_bytes())
        voxels = np.asanyarray(nibabel.load(path).dataobj).T
        if voxels.dtype != np.uint8:
            voxels = np.rint(voxels * (4095 / max(4095.0, float(voxels.max()))))
        _save(voxels.astype(np.int16), folders["volumes"] / path.name)
    for path in sorted(path for name in IMAGES for path in (data / name).glob("*.png")):
        image = Image.open(path).convert("L")
        square = Image.new("L", (SIDE, SIDE))
        square.paste(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2))
        square.save(folders["images"] / path.name)
    return folders


def _save(voxels: NDArray, path: Path) -> None:
    """A temporary name first: a file that is there is whole."""
    image = nibabel.Nifti1Image(voxels.T, np.eye(4))
    half = path.with_name(f"half-{path.name}")
    nibabel.save(image, half)
    half.rename(path)


def main() -> None:
    """Make all, print how well .nii.gz compresses them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=6)
    arguments = parser.parse_args()
    for modality, shape in SIZES.items():
        for path in large(arguments.data, arguments.out / modality, arguments.count, shape, modality):
            print(path.name, f"{2 * np.prod(shape) / os.path.getsize(path):.2f} times smaller as .nii.gz")
    for name, folder in small(arguments.data, arguments.out / "small").items():
        print(name, len(list(folder.iterdir())), "files")


if __name__ == "__main__":
    main()
