"""Several acquisitions in one series: each volume is one of them, or the series is refused; none is ever mixed."""

import random
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydicom.uid import MRImageStorage, PositronEmissionTomographyImageStorage

from scanfoundry.datasets.readers.dicom import group, read_volume, scan_headers
from scanfoundry.datasets.readers.scan import ReadError, Scan

ROWS, COLUMNS, STEP = 9, 7, 2.5
CLASSES = {"MR": MRImageStorage, "PT": PositronEmissionTomographyImageStorage}
# Of an attribute, the values that three acquisitions have; a function of (acquisition, position) where they vary.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "kernel": ("CT", {"ConvolutionKernel": ["B30f", "B70f", ["Br40", "3"]]}),
    "tube voltage": ("CT", {"KVP": [80, 100, 140]}),
    "contrast agent": ("CT", {"ContrastBolusAgent": ["", "Iomeron", "Ultravist"]}),
    "cardiac phase": ("CT", {"NominalPercentageOfCardiacPhase": [30.0, 60.0, 90.0]}),
    "trigger time": ("MR", {"TriggerTime": [10, 300, 520]}),
    "trigger time of each slice": ("MR", {"TriggerTime": lambda a, k: 500 * a + 13 * k}),
    "heart beats of different lengths": ("MR", {"TriggerTime": lambda a, k: a * (300 + 60 * k)}),
    "temporal position": ("MR", {"TemporalPositionIdentifier": [1, 2, 3]}),
    "frame reference time": ("PT", {"FrameReferenceTime": [0, 60000, 120000]}),
    "echo": ("MR", {"EchoTime": [10, 80, 120], "EchoNumbers": [1, 2, 3]}),
    "acquisition number": ("CT", {"AcquisitionNumber": [1, 2, 3]}),
    "image type": ("MR", {"ImageType": [["ORIGINAL", "PRIMARY", kind] for kind in "MPR"]}),
    "b-value": ("MR", {"DiffusionBValue": [0.0, 500.0, 1000.0]}),
    "b-value of Siemens": ("MR", {"private": [0, 500, 1000]}),
    "gradient": ("MR", {"DiffusionGradientOrientation": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]}),
    "frame of reference": ("CT", {"FrameOfReferenceUID": ["1.2.3.9", "1.2.3.10", "1.2.3.11"]}),
    "stack": ("MR", {"StackID": ["1", "2", "3"]}),
    "series number": ("MR", {"SeriesNumber": [4, 5, 6]}),
    "description": ("MR", {"SeriesDescription": ["pre", "post", "late"]}),
    "acquisition time": ("MR", {"AcquisitionTime": ["101010", "101110.5", "101210"]}),
    "content time of each slice": ("CT", {"ContentTime": lambda a, k: f"10{10 + a:02}{k:02}.5"}),
    "thickness": ("CT", {"SliceThickness": [2, 4, 5]}),
    "an attribute nobody thought of": ("CT", {"ImageComments": ["first", "second", "third"]}),
    "nothing": ("MR", {}),
}
# These change from bed to bed, slab to slab or slice to slice of one volume too: halves of two are no contradiction.
MAY_CHANGE = (
    "frame reference time", "acquisition number", "acquisition time", "content time of each slice", "nothing",
    "trigger time of each slice", "heart beats of different lengths", "an attribute nobody thought of",
    "b-value of Siemens", "gradient",
)  # fmt: skip
NUMBERINGS = [
    "through",
    "backwards",
    "place by place",
    "dealt out",
    "odd and even",
    "shuffled",
    "equal",
    "each",
    "none",
]
DAMAGES = ["", "", "", "missing", "missing end", "doubled", "doubled for missing", "halves"]


@dataclass
class Slice:
    """Slice `place` of acquisition `volume`, with its pixels and its number."""

    volume: int
    place: int
    pixels: np.ndarray
    number: int | None = None
    tags: dict[str, Any] = field(default_factory=dict)


def numbered(slices: list[Slice], numbering: str, volumes: int, places: int, rng: random.Random) -> None:
    """Gives instance numbers; 'each': every acquisition counts from 1."""
    shuffled = rng.sample(range(1, len(slices) + 1), len(slices))
    for index, one in enumerate(slices):
        through = one.volume * places + one.place + 1
        turn = (one.volume + one.place) % volumes
        one.number = {
            "through": through,
            "backwards": volumes * places + 1 - through,
            "place by place": one.place * volumes + one.volume + 1,
            "dealt out": turn * places + one.place + 1,
            "odd and even": one.volume * places + one.place // 2 + 1 + (one.place % 2) * ((places + 1) // 2),
            "shuffled": shuffled[index],
            "equal": 1,
            "each": one.place + 1,
            "none": None,
        }[numbering]


def damaged(slices: list[Slice], damage: str, volumes: int, places: int, rng: random.Random) -> list[Slice]:
    """Without some slices, or with some twice."""
    volume, place = rng.randrange(volumes), rng.randrange(1, places - 1)
    if damage == "missing end":
        place = rng.choice([0, places - 1])
    if damage == "halves":
        return [one for one in slices if volumes > 1 and (one.volume == volume) == (one.place < places // 2)] or slices
    one = next(one for one in slices if (one.volume, one.place) == (volume, place))
    if damage in ("missing", "missing end"):
        return [other for other in slices if other is not one]
    if damage == "doubled":
        return [*slices, Slice(volume, place, one.pixels, rng.choice([one.number, len(slices) + 1]), one.tags)]
    if damage == "doubled for missing":
        gone = next(other for other in slices if (other.volume, other.place) == ((volume + 1) % volumes, place))
        return [Slice(volume, place, one.pixels, len(slices) + 1, one.tags) if s is gone else s for s in slices]
    return slices


def written(folder: Path, slices: list[Slice], modality: str, dicom: SimpleNamespace, rng: random.Random) -> None:
    names = rng.sample(range(len(slices)), len(slices))
    for name, one in zip(names, slices, strict=True):
        values: dict[str, Any] = {"RescaleSlope": 1, "RescaleIntercept": 0, "PixelSpacing": [1.5, 1.5]}
        values |= {"InstanceNumber": one.number, "SliceThickness": 2, "SOPInstanceUID": f"1.2.9.{name + 1}"}
        values |= {key: value for key, value in one.tags.items() if key != "private"}
        if modality in CLASSES:
            values["SOPClassUID"] = CLASSES[modality]
        if one.number is None:
            del values["InstanceNumber"]
        dataset = dicom.header(Modality=modality, **values)
        dataset.ImagePositionPatient = [0.0, 0.0, STEP * one.place]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        if "private" in one.tags:
            dataset.add_new(0x00190010, "LO", "SIEMENS MR HEADER")
            dataset.add_new(0x0019100C, "IS", one.tags["private"])
        dicom.put_pixels(dataset, one.pixels)
        dicom.save(dataset, folder / f"{name:03}.dcm")


def series(kind: str, numbering: str, damage: str, seed: int) -> tuple[list[Slice], str, int, int]:
    """(slices, modality, volumes, positions)."""
    rng, noise = random.Random(seed), np.random.default_rng(seed)
    modality, tags = KINDS[kind]
    volumes, places = rng.choice([1, 2, 2, 3]), rng.randrange(4, 7)
    slices = []
    for volume in range(volumes):
        for place in range(places):
            own = {k: v(volume, place) if callable(v) else v[volume] for k, v in tags.items()}
            pixels = noise.integers(0, 4000, (ROWS, COLUMNS)).astype(np.uint16)
            slices.append(Slice(volume, place, pixels, tags=own))
    numbered(slices, numbering, volumes, places, rng)
    return damaged(slices, damage, volumes, places, rng), modality, volumes, places


def found_in(scan: Scan, slices: list[Slice]) -> list[tuple[int, int]]:
    """(acquisition, position) of each plane of the scan, from bottom to top; and each must lie where it was taken."""
    planes = []
    for number, plane in enumerate(scan.voxels[0]):
        assert scan.affine is not None
        row = scan.affine[:3, 1] @ [0, 1, 0] < 0  # rows count to the front here, backwards in the file
        stored = plane if row else plane[::-1]
        (one, *_) = [one for one in slices if np.array_equal(one.pixels, stored)]
        height = float((scan.affine @ [0, 0, number, 1])[2])
        assert height == pytest.approx(STEP * one.place, abs=1e-3)
        planes.append((one.volume, one.place))
    return sorted(planes, key=lambda plane: plane[1])


def outcome(folder: Path, slices: list[Slice]) -> tuple[str, int]:
    """('read', number of volumes) or (reason, 0); fails where a volume holds anything but one acquisition."""
    (source,), refusals = group(scan_headers(sorted(folder.iterdir())), folder)
    assert not refusals
    try:
        scans = list(read_volume(source))
    except ReadError as error:
        return str(error), 0
    for scan in scans:
        planes = found_in(scan, slices)
        assert len({volume for volume, _ in planes}) == 1, "mixed"
        places = [place for _, place in planes]
        assert places == list(range(places[0], places[0] + len(places)))
    assert len({found_in(scan, slices)[0][0] for scan in scans}) == len(scans), "an acquisition twice"
    return "read", len(scans)


def cases(seed: int = 5) -> list[tuple[str, str, str, int]]:
    """Every kind with every numbering, each with some damage or none."""
    rng = random.Random(seed)
    pairs = [(kind, numbering) for kind in KINDS for numbering in NUMBERINGS]
    pairs.remove(("nothing", "dealt out"))  # that is what numbers running through other acquisitions look like
    damages = [rng.choice(DAMAGES[:-1] if kind in MAY_CHANGE else DAMAGES) for kind, _ in pairs]
    return [(*pair, damage, number) for number, (pair, damage) in enumerate(zip(pairs, damages, strict=True))]


def test_there_are_enough_series() -> None:
    assert len(cases()) >= 200


@pytest.mark.parametrize("numbering", NUMBERINGS)
def test_no_series_of_several_acquisitions_is_mixed(dicom: SimpleNamespace, numbering: str) -> None:
    outcomes = Counter[str]()
    for kind, damage, seed in [(kind, damage, seed) for kind, how, damage, seed in cases() if how == numbering]:
        slices, modality, volumes, places = series(kind, numbering, damage, seed)
        with tempfile.TemporaryDirectory() as folder:
            written(Path(folder), slices, modality, dicom, random.Random(seed))
            what, count = outcome(Path(folder), slices)
        case = f"{kind}, {numbering}, {damage or 'whole'}, {volumes} volumes of {places}: {what}"
        if not damage and tells(kind, numbering, volumes):
            assert (what, count) == ("read", volumes), case
        if damage in ("missing", "doubled") or (damage == "doubled for missing" and volumes > 1):
            assert what != "read", case
        outcomes["read" if what == "read" else "refused"] += 1
    assert outcomes["read"] >= 6
    assert outcomes["refused"] >= 4


def tells(kind: str, numbering: str, volumes: int) -> bool:
    """Whether headers say which slices belong together."""
    if volumes == 1:
        return True
    if kind == "nothing":
        return numbering in ("through", "backwards")
    if kind == "heart beats of different lengths":
        return numbering in ("through", "backwards", "place by place", "odd and even")
    return True
