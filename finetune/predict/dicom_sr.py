"""Found boxes as a DICOM Structured Report by highdicom: a measurement report (PS3.16, TID 1500) with image regions."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import numpy.typing as npt
from highdicom import sr
from pydicom.sr.codedict import codes

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.files import write_whole
from scanfoundry.datasets.readers import Scan, Source
from scanfoundry.finetune.cases.boxes import Boxes
from scanfoundry.finetune.predict.codes import dicom_text, own_code
from scanfoundry.finetune.predict.dicom_source import FramePlace, Referenced, referenced
from scanfoundry.finetune.predict.maker import NAME, Maker
from scanfoundry.finetune.predict.outputs import Origin

SERIES_NUMBER = 901
_PROCEDURE = sr.CodedConcept("363679005", "SCT", "Imaging procedure")
_CERTAINTY = sr.CodedConcept("111012", "DCM", "Certainty of Finding")
_PERCENT = sr.CodedConcept("%", "UCUM", "Percent")

Rectangle = tuple[int, npt.NDArray[np.float64]]  # number of a frame, corners (5, 2) as column, row


def write(target: Path, found: Boxes, origin: Origin) -> None:
    """Boxes of one scan."""
    spec, maker = origin.spec, Maker(origin.serial, origin.spec.task.name)
    write_report(target, found, origin.scan, origin.item.source, spec.classes, maker)


def write_report(target: Path, found: Boxes, scan: Scan, source: Source, classes: Sequence[str], maker: Maker) -> None:
    """Each box as a finding with its score: a region of the image (TID 1410), or one on each slice that it meets
    (TID 1411). UserError where the source cannot be referred to, or nothing was found: the template wants a finding."""
    made = report(found, referenced(source, scan), classes, maker)
    write_whole(target, lambda part: made.save_as(part, enforce_file_format=True))


def report(found: Boxes, source: Referenced, classes: Sequence[str], maker: Maker) -> sr.Comprehensive3DSR:
    """The object in memory."""
    device = sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=hd.UID(), name=NAME, manufacturer_name=NAME, model_name=f"{NAME} {maker.task}"[:64]
        ),
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about values of the source's header
            every = zip(found.corners, found.surety, found.labels, strict=True)
            content = sr.MeasurementReport(
                observation_context=sr.ObservationContext(observer_device_context=device),
                procedure_reported=_PROCEDURE,
                imaging_measurements=[
                    _finding(number, box, float(score), classes[int(label)], source, maker)
                    for number, (box, score, label) in enumerate(every, 1)
                ],
            )
            return sr.Comprehensive3DSR(
                evidence=source.headers,
                content=content[0],
                series_instance_uid=hd.UID(),
                series_number=SERIES_NUMBER,
                sop_instance_uid=hd.UID(),
                instance_number=1,
                manufacturer=NAME,
                manufacturer_model_name=f"{NAME} {maker.task}"[:64],
                software_versions=maker.version,
                device_serial_number=maker.serial,
                series_description=f"{NAME} findings",
                is_complete=True,
            )
    except (ValueError, TypeError, AttributeError, KeyError) as error:  # headers that highdicom cannot build on
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"no DICOM SR can refer to these files ({reason})") from error


def _finding(
    number: int, box: npt.NDArray[np.float64], score: float, name: str, source: Referenced, maker: Maker
) -> sr.PlanarROIMeasurementsAndQualitativeEvaluations | sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
    regions = [
        sr.ImageRegion(sr.GraphicTypeValues.POLYLINE, corners, source_image=_image(frame, source))
        for frame, corners in rectangles(box, source)
    ]
    common: dict[str, Any] = {
        "tracking_identifier": sr.TrackingIdentifier(uid=hd.UID(), identifier=f"{dicom_text(name, 32)} {number}"),
        "finding_type": own_code(name),
        "algorithm_id": sr.AlgorithmIdentification(NAME, maker.version, [f"model {maker.serial}"]),
        "measurements": [sr.Measurement(_CERTAINTY, round(100 * score, 2), _PERCENT)],
    }
    if len(source.places) == 1:
        return sr.PlanarROIMeasurementsAndQualitativeEvaluations(referenced_region=regions[0], **common)
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(referenced_regions=regions, **common)


def _image(frame: int, source: Referenced) -> sr.SourceImageForRegion:
    if len(source.headers) == 1 and len(source.places) > 1:
        only = source.headers[0]
        return sr.SourceImageForRegion(only.SOPClassUID, only.SOPInstanceUID, [frame + 1])
    header = source.headers[frame]
    return sr.SourceImageForRegion(header.SOPClassUID, header.SOPInstanceUID)


def rectangles(box: npt.NDArray[np.float64], source: Referenced) -> list[Rectangle]:
    """The box on every frame whose middle it contains, on the nearest one where it contains none; in frames' order.

    Corners are columns and rows with (0, 0) the outer corner of the first pixel (PS3.3, C.18.6.1.2), closed.
    """
    low, high = box[:3][::-1], box[3:][::-1]  # x y z, edges
    across = source.places[0].across
    # Middle of each frame along the axis that it lies across, counted in edges.
    heights = np.array([np.round(place.first[across]) + 0.5 for place in source.places])
    inside = (low[across] <= heights) & (heights < high[across])
    if not inside.any():
        inside[np.argmin(np.abs(heights - (low[across] + high[across]) / 2))] = True
    return [(int(n), _corners(low, high, source.places[n], source)) for n in np.flatnonzero(inside)]


def _corners(
    low: npt.NDArray[np.float64], high: npt.NDArray[np.float64], place: FramePlace, source: Referenced
) -> npt.NDArray[np.float64]:
    ends = np.stack([low, high]) - 0.5 - place.first  # from the first pixel's centre, in voxels
    columns = np.clip(np.sort(ends @ place.column) + 0.5, 0, source.columns)
    rows = np.clip(np.sort(ends @ place.row) + 0.5, 0, source.rows)
    (left, right), (top, bottom) = columns, rows
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom], [left, top]])
