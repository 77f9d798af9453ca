"""The real series and the odd files: every one stored rightly, or left out with a reason that was read by hand."""

import fnmatch
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from scanfoundry.datasets.readers.dicom import group, identifying_strings, read_image, read_volume, scan_headers
from scanfoundry.datasets.readers.dicom.pixels.gdcm_plugin import register
from scanfoundry.datasets.readers.scan import Scan, Source

READERS = {"dicom-volume": read_volume, "dicom-image": read_image}
NO_PIXELS = "no pixel data found: none stored, or the header is cut or damaged"
COPY = "another file holds the same instance"
# In this order: the first pattern that fits. Files that none fits must be stored.
LEFT_OUT = [
    ("*/TINY_ALPHA/README", "not DICOM"),
    ("*/TINY_ALPHA/*", NO_PIXELS),
    ("*/DICOMDIR*", "DICOMDIR: a directory of other files"),
    ("*/98892001/CT2N/*", "localiser: for planning, not a scan"),
    ("*.txt", "not DICOM"), ("*.json", "not DICOM"), ("*.gz", "not DICOM"), ("*.icc", "not DICOM"),
    ("*.md", "not DICOM"), ("*.dump", "not DICOM"),
    ("*/no_meta.dcm", "named as DICOM, but there is no DICOM header at its start"),
    ("*/emri_small_*", COPY), ("*/liver_*", "segmentation: labels, not a scan"),
    ("*/parametric_map_float.dcm", "parametric map: a derived result, not a scan"),
    ("*/MR_small_*", COPY), ("*/JPGExtended.dcm", COPY), ("*/SC_rgb_expb.dcm", COPY), ("*/SC_rgb_rle.dcm", COPY),
    ("*/SC_ybr_full_*", COPY), ("*/SC_rgb_dcmtk_+eb+cr.dcm", COPY), ("*/SC_rgb_dcmtk_+eb+cy+n2.dcm", COPY),
    ("*/SC_rgb_dcmtk_+eb+cy+s2.dcm", COPY), ("*/SC_rgb_jpeg_gdcm.dcm", COPY), ("*/SC_rgb_rle_16bit.dcm", COPY),
    ("*/SC_rgb_small_odd_big_endian.dcm", COPY),
    ("*/rtdose*", "radiotherapy dose map: computed, not a scan"),
    ("*/rtplan*", "radiotherapy plan or record, no image"), ("*NoMeta.dcm", "radiotherapy plan or record, no image"),
    ("*/reportsi*", "structured report, no image"), ("*/test-SR.dcm", "structured report, no image"),
    ("*/waveform_ecg.dcm", "waveform (ECG or the like), no image"),
    ("*/UN_sequence.dcm", NO_PIXELS), ("*/nested_priv_SQ.dcm", NO_PIXELS),
    ("*/no_meta_group_length.dcm", NO_PIXELS),
]  # fmt: skip


@pytest.fixture(scope="module")
def mixed(real_data: Path) -> Path:
    return real_data / "dicom_mixed"


def sources_of(folder: Path, pattern: str = "*") -> tuple[list[Source], list[tuple[str, str, str]]]:
    files = sorted(path for top in folder.glob(pattern) for path in (top, *top.rglob("*")) if path.is_file())
    sources, refusals = group(scan_headers(files), folder)
    named = [name for source in sources for name in source.files] + [name for name, _, _ in refusals]
    assert sorted(named) == [file.relative_to(folder).as_posix() for file in files]
    return sources, refusals


def scans_of(folder: Path) -> list[Scan]:
    return [scan for source in sources_of(folder)[0] for scan in READERS[source.kind](source)]


def test_every_odd_file_is_stored_or_left_out_with_its_reason(mixed: Path) -> None:
    sources, refusals = sources_of(mixed, "odd_*")
    found = {name: reason for name, reason, _ in refusals}
    for source in sources:
        assert list(READERS[source.kind](source))
        found |= dict.fromkeys(source.files, "")
    for name, reason in sorted(found.items()):
        print(f"{name:100} {reason or 'stored'}")
        expected = next((reason for pattern, reason in LEFT_OUT if fnmatch.fnmatch(name, pattern)), "")
        if expected == COPY:  # and which one
            other = reason.removeprefix(f"{COPY}: ")
            assert found[other] == "", name
            reason = reason.removesuffix(f": {other}")
        assert (name, reason) == (name, expected)
    assert sum(not reason for reason in found.values()) >= 45


def test_stored_images_hold_the_pixels_that_pydicom_decodes(mixed: Path) -> None:
    register()
    compared = 0
    for source in sources_of(mixed, "odd_*")[0]:
        dataset = pydicom.dcmread(source.paths[0], force=True)
        if source.kind != "dicom-image" or dataset.PhotometricInterpretation in ("PALETTE COLOR", "MONOCHROME1"):
            continue
        if "PixelPaddingValue" in dataset:
            continue
        (scan,) = read_image(source)
        expected = dataset.pixel_array
        if dataset.SamplesPerPixel == 3:
            expected = np.moveaxis(expected, -1, 0).reshape(3, *scan.voxels.shape[1:])
        else:
            slope, intercept = float(dataset.get("RescaleSlope") or 1), float(dataset.get("RescaleIntercept") or 0)
            expected = (expected * slope + intercept).reshape(scan.voxels.shape)
        assert np.array_equal(scan.voxels, expected), source.relative
        compared += 1
    assert compared >= 30


@pytest.mark.parametrize(
    ("series", "volumes"), [("series_ge_mr_epi", 10), ("series_siemens_mr_mosaic", 2), ("series_siemens_mosaic_cor", 2)]
)
def test_series_equal_their_reference(mixed: Path, series: str, volumes: int) -> None:
    image = nib.load(next((mixed / series / "ref").glob("*.nii.gz")))
    reference = np.asanyarray(image.dataobj)
    scans = scans_of(mixed / series / "dicom")
    assert len(scans) == volumes == reference.shape[3]
    for number, scan in enumerate(scans):
        assert np.abs(scan.affine - image.affine).max() < 1e-3
        assert np.array_equal(scan.voxels[0], reference[..., number].T)


@pytest.mark.parametrize(
    ("series", "shape", "spacing"),
    [("series_siemens_ct_j2k", (20, 512, 512), (2, 0.9765625, 0.9765625)),
     ("series_siemens_mr_sag_HFDL", (35, 256, 256), (4.8, 1.015625, 1.015625)),
     ("series_hippocrop/Study1", (32, 51, 35), (1, 1, 1)),
     ("series_tcia_pgbm001/t1post", (25, 320, 260), (6.5, 0.6875, 0.6875))],
)  # fmt: skip
def test_every_slice_lies_where_its_own_header_says(mixed: Path, series: str, shape: tuple, spacing: tuple) -> None:
    (scan,) = scans_of(mixed / series)
    assert scan.voxels.shape == (1, *shape)
    assert scan.spacing == pytest.approx(spacing, abs=1e-3)
    to_voxels = np.linalg.inv(scan.affine)
    files = [p for p in (mixed / series).rglob("*") if p.is_file() and p.suffix not in (".gz", ".json")]
    assert len(files) == shape[0]
    for file in files[::4]:
        header = pydicom.dcmread(file)
        row, column = np.reshape(np.asarray(header.ImageOrientationPatient, float), (2, 3))
        pixels = header.pixel_array * float(header.get("RescaleSlope", 1)) + float(header.get("RescaleIntercept", 0))
        for r, c in ((0, 0), (pixels.shape[0] // 2, pixels.shape[1] // 3), (pixels.shape[0] - 1, pixels.shape[1] - 1)):
            point = np.asarray(header.ImagePositionPatient, float) + row * c * header.PixelSpacing[1]
            point = (point + column * r * header.PixelSpacing[0]) * [-1, -1, 1]
            x, y, z = (to_voxels @ [*point, 1])[:3]
            index = tuple(np.round([z, y, x]).astype(int))
            assert np.abs(np.array([z, y, x]) - index).max() < 0.01
            assert scan.voxels[0][index] == pixels[r, c]


def test_the_ct_shares_the_grid_of_its_label(mixed: Path) -> None:
    (scan,) = scans_of(mixed / "series_siemens_ct_j2k" / "dicom")
    label = nib.load(mixed / "series_siemens_ct_j2k" / "label_totalseg.nii.gz")
    assert np.abs(label.affine - scan.affine).max() < 1e-3
    assert label.shape == scan.voxels[0].T.shape


def test_the_tumour_series_agrees_with_its_nifti(mixed: Path, real_data: Path) -> None:
    (scan,) = scans_of(mixed / "series_tcia_pgbm001" / "t1post")
    image = nib.load(real_data / "brain_tumor_progression_mr" / "PGBM-001_19911119" / "t1gd.nii.gz")
    voxels = scan.voxels[0].T[:, ::-1].astype(float)  # that file counts its rows the other way round
    means = voxels.reshape(130, 2, 160, 2, 25).mean(axis=(1, 3))
    assert np.abs(means - np.asanyarray(image.dataobj)).max() <= 0.5
    (mask,) = scans_of(mixed / "series_tcia_pgbm001" / "mask_tumor")
    assert np.abs(mask.affine - scan.affine).max() < 1e-3
    assert mask.voxels.shape == scan.voxels.shape


def test_no_identifying_string_of_any_header_is_in_a_scan(mixed: Path) -> None:
    looked_for = 0
    for source in sources_of(mixed)[0]:
        told = ""
        for scan in READERS[source.kind](source):
            told += repr((scan.modality, scan.facts, scan.warnings, scan.part, scan.patient, scan.split)).casefold()
        for path in source.paths:
            strings = identifying_strings(path)
            looked_for += len(strings)
            assert not [one for one in strings if one.casefold() in told]
    assert looked_for > 1000
