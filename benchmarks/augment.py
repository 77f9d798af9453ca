"""Views per second: scanfoundry's batched augmentation against MONAI's dictionary transforms, sample by sample.

command: python benchmarks/augment.py --data DATA [--out augment]

Both make views of the same real MR (tiled up to the size asked for) with the same transforms, probabilities and
ranges: an affine alone, and the preset `strong`. Both interpolate once for all geometry and carry the mask of valid
voxels along. Medians of five rounds in which the two take turns, in one process.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import monai.transforms as mt
import nibabel
import numpy as np
import torch
from record import record

from scanfoundry.datasets.augment.config import AugmentConfig
from scanfoundry.datasets.augment.draw import Drawer
from scanfoundry.datasets.augment.pipeline import Augment
from scanfoundry.datasets.batch import Batch
from scanfoundry.datasets.intensity import IntensityConfig, normalise, statistics

CASES = {"2d 224^2, batch 32": (32, (1, 224, 224)), "3d 96^3, batch 4": (4, (96, 96, 96))}
ROUNDS, VIEWS = 5, 8
STRONG = AugmentConfig(preset="strong")
AFFINE = AugmentConfig.model_validate({"default": {"affine": {"scale": [0.8, 1.25]}}})


def scans(data: Path, count: int, shape: tuple[int, int, int]) -> Batch:
    """Normalised MR, tiled to `shape`, as the loader would hand it out."""
    voxels = []
    for path in sorted((data / "msd_task04_hippocampus" / "imagesTr").glob("*.nii.gz"))[:count]:
        scan = np.asanyarray(nibabel.load(path).dataobj).T.astype(np.float32)
        scan = normalise(scan, "mr", statistics(scan), IntensityConfig())
        repeats = [-(-wanted // length) for wanted, length in zip(shape, scan.shape, strict=True)]
        voxels.append(np.tile(scan, repeats)[tuple(slice(length) for length in shape)][None])
    stacked = torch.from_numpy(np.stack(voxels))
    valid = torch.ones_like(stacked, dtype=torch.bool)
    names = [str(number) for number in range(count)]
    return Batch(stacked, valid, torch.arange(count) + 2**40, names, ["mr"] * count, ["hippocampus"] * count, 0)


def monai_strong(shape: tuple[int, ...]) -> mt.Compose:
    """The preset `strong` for MR in MONAI's words; its resized crop is the zoom and shift of the one affine."""
    dims = len(shape)
    turn, tilt = np.radians(15), np.radians(5)
    both, image = ["image", "valid"], ["image"]
    boxes = [max(1, round(0.05 * n)) for n in shape], [max(1, round(0.2 * n)) for n in shape]
    return mt.Compose([
        mt.RandAffined(
            both, prob=1.0, rotate_range=turn if dims == 2 else (turn, tilt, tilt), scale_range=[(-0.37, 0.0)] * dims,
            translate_range=[n / 8 for n in shape], mode=["bilinear", "nearest"], padding_mode=["border", "zeros"],
            spatial_size=shape, cache_grid=True,
        ),
        mt.RandBiasFieldd(image, prob=0.3, degree=3, coeff_range=(0.0, 0.2)),
        mt.RandGaussianSmoothd(image, prob=0.2, sigma_x=(0.3, 0.8), sigma_y=(0.3, 0.8), sigma_z=(0.3, 0.8)),
        mt.RandSimulateLowResolutiond(
            image, prob=0.2, zoom_range=(0.5, 0.8), upsample_mode="bilinear" if dims == 2 else "trilinear"
        ),
        mt.RandRicianNoised(image, prob=0.3, std=0.1),
        mt.RandAdjustContrastd(image, prob=0.4, gamma=(0.7, 1.5)),
        mt.RandCoarseDropoutd(image, prob=0.2, holes=1, max_holes=3, spatial_size=boxes[0], max_spatial_size=boxes[1]),
    ])  # fmt: skip


def monai_affine(shape: tuple[int, ...]) -> mt.Compose:
    """AFFINE in MONAI's words."""
    dims = len(shape)
    turn, tilt = np.radians(15), np.radians(5)
    return mt.Compose([
        mt.RandAffined(
            ["image", "valid"], prob=1.0, rotate_range=turn if dims == 2 else (turn, tilt, tilt),
            scale_range=[(-0.2, 0.25)] * dims, mode=["bilinear", "nearest"], padding_mode=["border", "zeros"],
            spatial_size=shape, cache_grid=True,
        ),
    ])  # fmt: skip


def one_by_one(transform: mt.Compose, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """A view of the batch by MONAI: every sample through its dictionary, then stacked."""
    images, masks = batch.voxels, batch.valid
    if batch.is_2d:
        images, masks = images[:, :, 0], masks[:, :, 0]
    views = [transform({"image": image, "valid": mask}) for image, mask in zip(images, masks, strict=True)]
    moved = torch.stack([view["image"].as_tensor() for view in views])
    return moved, torch.stack([view["valid"].as_tensor() > 0.5 for view in views])


def milliseconds(call: Callable[[], object]) -> float:
    """How long one call takes."""
    started = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - started)


def compare(batch: Batch, config: AugmentConfig, transform: mt.Compose) -> dict[str, float]:
    """Medians in ms per batch; the ratio is the median of the rounds' own ratios."""
    augment = Augment(config)
    augment(batch), one_by_one(transform, batch)
    ours, theirs = [], []
    for view in range(ROUNDS):
        # Several views a time: which transforms a single one draws is luck.
        ours.append(milliseconds(lambda first=VIEWS * view: [augment(batch, first + k) for k in range(VIEWS)]) / VIEWS)
        theirs.append(milliseconds(lambda: [one_by_one(transform, batch) for _ in range(VIEWS)]) / VIEWS)
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    return {
        "scanfoundry_ms": round(median(ours), 1),
        "monai_ms": round(median(theirs), 1),
        "faster": round(median(ratios), 2),
        "faster_min": round(min(ratios), 2),
        "faster_max": round(max(ratios), 2),
    }


def draw_milliseconds() -> float:
    """Median time to draw the parameters of a batch of 32 of four modalities."""
    drawer = Drawer(STRONG)
    seeds, modalities = list(range(2**40, 2**40 + 32)), ["ct", "mr", "us", "xr"] * 8
    return round(median(milliseconds(lambda view=view: drawer(seeds, modalities, view)) for view in range(50)), 3)


def main() -> None:
    """Measure, print a table, and with --out write JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", help="name of the JSON in benchmarks/results; without it nothing is written")
    arguments = parser.parse_args()
    np.random.seed(0)
    result: dict[str, object] = {"threads": torch.get_num_threads(), "draw_32_samples_ms": draw_milliseconds()}
    print(f"{torch.get_num_threads()} threads; draws of 32 samples: {result['draw_32_samples_ms']} ms")
    print(f"{'ms per batch':32}{'scanfoundry':>10}{'MONAI':>10}{'faster':>8}{'range':>14}")
    for name, (count, shape) in CASES.items():
        batch = scans(arguments.data, count, shape)
        space = shape[1:] if batch.is_2d else shape
        for kind, config, transform in (
            ("affine", AFFINE, monai_affine(space)),
            ("strong", STRONG, monai_strong(space)),
        ):
            row = compare(batch, config, transform)
            result[f"{name}, {kind}"] = row
            spread = f"{row['faster_min']}-{row['faster_max']}"
            print(
                f"{name + ', ' + kind:32}{row['scanfoundry_ms']:>10}{row['monai_ms']:>10}{row['faster']:>8}{spread:>14}"
            )
    if arguments.out:
        record(arguments.out, result)


if __name__ == "__main__":
    main()
