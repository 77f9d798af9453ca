"""DICOM Segmentation (PS3.3, A.51) by highdicom, on the frames of the series that was segmented."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import highdicom as hd
import numpy as np
import numpy.typing as npt

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.files import write_whole
from scanfoundry.datasets.readers import Scan, Source
from scanfoundry.finetune.predict.codes import concept_of, dicom_text
from scanfoundry.finetune.predict.dicom_source import Referenced, labels_of_frames, referenced
from scanfoundry.finetune.predict.maker import NAME, Maker
from scanfoundry.finetune.predict.outputs import Origin

SERIES_NUMBER = 900  # after those of the scanner


def write(target: Path, codes: npt.NDArray[np.uint8], origin: Origin) -> None:
    """A label map (D, H, W) of codes."""
    spec, maker = origin.spec, Maker(origin.serial, origin.spec.task.name)
    write_labels(target, codes, origin.scan, origin.item.source, spec.classes, maker, spec.labels.written)


def write_labels(
    target: Path,
    labels: npt.NDArray[np.uint8],
    scan: Scan,
    source: Source,
    classes: Sequence[str],
    maker: Maker,
    written: Sequence[int] = (),
) -> None:
    """A label map (D, H, W) as one binary segment for each class, empty ones too, in a series of its own.

    The standard counts segments 1, 2, 3; each says in its description which number `written` has for its class.
    Patient, study and frame of reference are those of the source, as DICOM demands. UserError where the standard has
    no way to refer to the source's frames.
    """
    made = segmentation(labels, referenced(source, scan), classes, maker, written)
    write_whole(target, lambda part: made.save_as(part, enforce_file_format=True))


def segmentation(
    labels: npt.NDArray[np.uint8],
    source: Referenced,
    classes: Sequence[str],
    maker: Maker,
    written: Sequence[int] = (),
) -> hd.seg.Segmentation:
    """The object in memory; empty frames are left out, unless all are empty."""
    frames = labels_of_frames(labels, source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about values of the source's header, which are not ours to judge
            made = hd.seg.Segmentation(
                source_images=source.headers,
                pixel_array=frames,
                segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=[_described(n, name, maker) for n, name in enumerate(classes, 1)],
                series_instance_uid=hd.UID(),
                series_number=SERIES_NUMBER,
                sop_instance_uid=hd.UID(),
                instance_number=1,
                manufacturer=NAME,
                manufacturer_model_name=f"{NAME} {maker.task}",
                software_versions=maker.version,
                device_serial_number=maker.serial,
                pixel_measures=_measures(source),
                omit_empty_frames=bool(frames.any()),
                content_label="SEGMENTATION",
                content_description="made by software, not verified by a person",
                series_description=f"{NAME} segmentation",
            )
            for segment, number in zip(made.SegmentSequence, written, strict=False):
                segment.SegmentDescription = f"label {number} of the label maps that it was learnt from"
            return made
    except (ValueError, TypeError, AttributeError, KeyError) as error:  # headers that highdicom cannot build on
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"no DICOM-SEG can refer to these files ({reason}); take --format nifti") from error


def _described(number: int, name: str, maker: Maker) -> hd.seg.SegmentDescription:
    category, kind = concept_of(name)
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=dicom_text(name),
        segmented_property_category=category,
        segmented_property_type=kind,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=maker.algorithm(),
        tracking_uid=hd.UID(),
        tracking_id=dicom_text(name),
    )


def _measures(source: Referenced) -> hd.PixelMeasuresSequence | None:
    """With the distance between slices as they lie: headers often give their thickness alone. None: as highdicom."""
    first = source.headers[0]
    if source.step is None or "PixelSpacing" not in first:
        return None
    return hd.PixelMeasuresSequence(
        pixel_spacing=first.PixelSpacing,
        slice_thickness=float(first.get("SliceThickness") or source.step),
        spacing_between_slices=float(f"{source.step:.8g}"),
    )
