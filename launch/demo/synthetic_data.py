"""A procedural cohort: CT-like and MR-like volumes and X-ray-like projections, with organs, lesions and diagnoses.

Everything is written as NIfTI, PNG and CSV files and read back by the pipeline like anyone's scans. The bodies are
made of ellipsoids whose place, size and tilt vary from patient to patient; no real scan went into them.
"""

import csv
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

SHAPE = (40, 64, 64)  # D, H, W
SPACING = (4.0, 3.0, 3.0)  # mm
# Tissue: CT number in Hounsfield units, and brightness in the MR-like contrast.
TISSUE = {"air": (-1000, 0.02), "fat": (-90, 0.9), "muscle": (45, 0.35), "bone": (600, 0.12), "liver": (95, 0.55),
          "kidney": (140, 0.7), "lesion": (20, 0.95)}  # fmt: skip
LIVER, KIDNEY, LESION = 1, 2, 3  # labels; 0 is background

Volume = NDArray[np.float32]
Labels = NDArray[np.uint8]


def make_cohort(out: Path, patients: int, seed: int = 0) -> None:
    """Write `out`/{ct,mr}/{imagesTr,labelsTr,lesions} (NIfTI), `out`/xray/{images,masks} (PNG), `out`/xray/labels.csv.

    Label maps name the organs (a lesion is part of its liver); `lesions` and `masks` mark the lesions alone. A third
    of the patients of ct and mr have none, half of those of xray. All are different people.
    """
    rng = np.random.default_rng(seed)
    for modality in ("ct", "mr"):
        images, labels, lesions = (out / modality / name for name in ("imagesTr", "labelsTr", "lesions"))
        for folder in (images, labels, lesions):
            folder.mkdir(parents=True, exist_ok=True)
        for i in range(patients):
            voxels, organs = make_patient(rng, modality, lesion=i % 3 != 0)
            name = f"{modality}_{i:03d}.nii.gz"
            _save_nifti(images / name, voxels.astype(np.int16))
            _save_nifti(labels / name, np.where(organs == LESION, LIVER, organs).astype(np.uint8))
            _save_nifti(lesions / name, (organs == LESION).astype(np.uint8))
    _make_projections(out / "xray", 2 * patients, rng)


def make_patient(rng: np.random.Generator, modality: str, lesion: bool) -> tuple[Volume, Labels]:
    """One body: intensities (D, H, W) in HU or arbitrary MR units, and its label map."""
    centre = np.array(SHAPE) / 2 + rng.normal(0, 1.5, 3)
    tilt = rng.normal(0, 0.08)
    tissue = np.full(SHAPE, "air", dtype=object)
    body = _ellipsoid(centre, np.array([30, 21, 27]) * rng.uniform(0.92, 1.05), tilt)
    tissue[body] = "fat"
    tissue[_ellipsoid(centre, np.array([30, 18, 24]) * rng.uniform(0.93, 1.04), tilt)] = "muscle"
    tissue[_ellipsoid(centre + [0, 11, 0], np.array([40, 3.6, 3.6]), tilt)] = "bone"
    organs = np.zeros(SHAPE, np.uint8)
    liver = _ellipsoid(
        centre + [-5, -3, -9] + rng.normal(0, 1, 3), np.array([11, 10, 11]) * rng.uniform(0.8, 1.1), tilt
    )
    kidneys = np.zeros(SHAPE, bool)
    for side in (-1, 1):
        place = centre + [5, 7, 11 * side] + rng.normal(0, 1, 3)
        kidneys |= _ellipsoid(place, np.array([7, 4.2, 4.4]) * rng.uniform(0.85, 1.15), tilt)
    for mask, name, label in ((liver, "liver", LIVER), (kidneys & ~liver, "kidney", KIDNEY)):
        tissue[mask & body], organs[mask & body] = name, label
    if lesion:
        inside = np.argwhere(ndimage.binary_erosion(organs == LIVER, iterations=3))
        spot = _ellipsoid(inside[rng.integers(len(inside))], rng.uniform(2.2, 4.2, 3), 0.0) & (organs == LIVER)
        tissue[spot], organs[spot] = "lesion", LESION
    return _acquire(tissue, modality, rng), organs


def _acquire(tissue: NDArray[np.object_], modality: str, rng: np.random.Generator) -> Volume:
    column = 0 if modality == "ct" else 1
    voxels = np.zeros(SHAPE, np.float32)
    for name, values in TISSUE.items():
        voxels[tissue == name] = values[column]
    voxels = ndimage.gaussian_filter(voxels, (0.5, 0.7, 0.7))
    if modality == "ct":
        return voxels + rng.normal(0, 25, SHAPE).astype(np.float32)
    bias = ndimage.zoom(rng.uniform(0.75, 1.25, (3, 3, 3)), [s / 3 for s in SHAPE], order=1)
    real, imaginary = voxels * bias + rng.normal(0, 0.03, SHAPE), rng.normal(0, 0.03, SHAPE)
    gain = rng.uniform(300, 1500)  # MR units are arbitrary: another scale for every scan
    return (np.hypot(real, imaginary) * gain).astype(np.float32)


def _ellipsoid(centre: NDArray[np.float64], radii: NDArray[np.float64], tilt: float) -> NDArray[np.bool_]:
    d, h, w = np.ogrid[tuple(slice(0, s) for s in SHAPE)]
    y, x = h - centre[1], w - centre[2]
    along_y, along_x = np.cos(tilt) * y - np.sin(tilt) * x, np.sin(tilt) * y + np.cos(tilt) * x
    distance = ((d - centre[0]) / radii[0]) ** 2 + (along_y / radii[1]) ** 2 + (along_x / radii[2]) ** 2
    return np.asarray(distance <= 1.0)


def _make_projections(out: Path, patients: int, rng: np.random.Generator) -> None:
    """Coronal projections of CT-like bodies: attenuation summed along H, written as 8-bit PNG."""
    for folder in ("images", "masks"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(patients):
        voxels, organs = make_patient(rng, "ct", lesion=i % 2 == 0)
        # In a projection a lesion of liver-like density drowns; these are calcified.
        attenuation = np.clip(voxels + 1000, 0, None) + 900.0 * (organs == LESION)
        film = np.exp(-attenuation.sum(1) / 22000.0)
        film = ndimage.zoom(film, (SPACING[0] / SPACING[1] * 2, 2), order=1)
        mask = ndimage.zoom((organs == LESION).any(1).astype(np.uint8), (SPACING[0] / SPACING[1] * 2, 2), order=0)
        low, high = np.percentile(film, (1, 99))
        grey = 255 * (1 - np.clip((film - low) / (high - low), 0, 1))
        name = f"xray_{i:03d}"
        Image.fromarray(grey.astype(np.uint8)).save(out / "images" / f"{name}.png")
        Image.fromarray(mask * 255).save(out / "masks" / f"{name}.png")
        rows.append({"id": name, "class": "lesion" if mask.any() else "healthy"})
    with open(out / "labels.csv", "w", newline="") as handle:
        writer = csv.DictWriter(handle, fieldnames=["id", "class"])
        writer.writeheader()
        writer.writerows(rows)


def _save_nifti(path: Path, array: NDArray[np.int16] | Labels) -> None:
    affine = np.diag([-SPACING[2], -SPACING[1], SPACING[0], 1.0])
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(array.T), affine), path)
