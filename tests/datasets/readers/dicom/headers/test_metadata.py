"""De-identification: what may be kept of a header, what a person is warned of, and what must never appear."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import MRImageStorage

from scanfoundry.datasets.readers.dicom import identifying_strings, scan_headers
from scanfoundry.datasets.readers.dicom.headers.identity import short_names
from scanfoundry.datasets.readers.dicom.headers.metadata import metadata_of
from scanfoundry.datasets.readers.dicom.headers.vocabularies import model_of, sequence_of, vendor_of
from scanfoundry.datasets.readers.scan import FACTS, WARNINGS, Scan

STORAGE = "1.2.840.10008.5.1.4.1.1."


def only(dicom: SimpleNamespace, folder: Path, count: int = 40, **values: Any) -> Scan:
    step = {"PixelSpacing": [6.0, 6.0]}
    dicom.slices(folder, [(0.0, 0.0, 4.0 * k) for k in range(count)], **(step | values))
    (scan,), _ = dicom.load(folder)
    assert set(scan.facts) <= set(FACTS)
    assert set(scan.warnings) <= set(WARNINGS)
    return scan


def test_facts_come_from_closed_vocabularies(tmp_path: Path, dicom: SimpleNamespace) -> None:
    good = only(
        dicom,
        tmp_path / "a",
        4,
        Manufacturer="GE MEDICAL SYSTEMS",
        ManufacturerModelName="DISCOVERY MR750",
        BodyPartExamined="CHEST",
        Modality="MR",
        SOPClassUID=MRImageStorage,
        SeriesDescription="Ax T2_FLAIR fs",
    )
    assert good.facts == {"manufacturer": "ge", "model": "DISCOVERY MR750", "body_part": "chest", "sequence": "flair"}
    free = only(
        dicom,
        tmp_path / "b",
        4,
        Manufacturer="Doe & Sons",
        ManufacturerModelName="Jane's",
        BodyPartExamined="JANE DOE",
        SeriesDescription="Jane Doe, follow-up",
    )
    assert free.facts == {}


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PatientName", "SKYRA^Jane"),
        ("PatientID", "Skyra"),
        ("InstitutionName", "St. Skyra Hospital"),
        ("StationName", "SKYRA"),
        ("DeviceSerialNumber", "Skyra"),
    ],
)
def test_a_model_that_repeats_an_identity_is_dropped(
    tmp_path: Path, dicom: SimpleNamespace, keyword: str, value: str
) -> None:
    facts = only(dicom, tmp_path / "a", 3, ManufacturerModelName="Skyra", **{keyword: value}).facts
    assert "model" not in facts
    assert only(dicom, tmp_path / "b", 3, ManufacturerModelName="Skyra").facts["model"] == "Skyra"


@pytest.mark.parametrize(
    "model", ["", "12345", "MR 1234567", "a@b", "Doe^Jane", "x" * 40, "http://a/b", "two\nlines", "Ärzte"]
)
def test_models_of_no_scanner(model: str) -> None:
    assert not any(model_of(vendor, model, set(), set()) for vendor in ("siemens", "ge", "philips", ""))


@pytest.mark.parametrize(
    ("manufacturer", "model", "known"),
    [
        ("SIEMENS", "TrioTim", "TrioTim"),
        ("SIEMENS", "Prisma_fit", "Prisma_fit"),
        ("Siemens Healthineers", "MAGNETOM Vida", "Vida"),
        ("SIEMENS", "Biograph40_mCT 4R", "Biograph40_mCT 4R"),
        ("SIEMENS", "SOMATOM Definition AS+", "Definition AS+"),
        ("GE MEDICAL SYSTEMS", "Discovery MR750", "DISCOVERY MR750"),
        ("GE MEDICAL SYSTEMS", "LightSpeed Plus", "LightSpeed Plus"),
        ("G.E. Medical Systems", "LOGIQ 700", "LOGIQ 700"),
        ("Philips Medical Systems", "Achieva dStream", "Achieva dStream"),
        ("Philips Medical Systems, Inc.", "Eclipse 1.5T", "Eclipse 1.5T"),
        ("TOSHIBA_MEC", "MRT50H1", "MRT50H1"),
        ("UIH", "uMR 780", "uMR 780"),
        ("Agfa-Gevaert AG", "ADC_5146", "ADC_5146"),
        ("SonoSite, Inc.", "Turbo", "Turbo"),
        ("GE MEDICAL SYSTEMS", "Skyra", ""),  # another vendor's
        ("SIEMENS", "Skyra of Fliederhof", ""),
        ("SIEMENS", "Skyra Meier", ""),
        ("SIEMENS", "Meier", ""),
        ("SIEMENS", "Room Three West", ""),
        ("SIEMENS", "Jane Doe's", ""),
        ("SIEMENS", "HUBER SEPP", ""),
        ("SIEMENS", "CT Dr Maier", ""),
        ("SIEMENS", "MR1 Schwabing", ""),
        ("SIEMENS", "Li", ""),
        ("Philips", "Ida", ""),
    ],
)
def test_models_are_those_of_a_closed_list(
    tmp_path: Path, dicom: SimpleNamespace, manufacturer: str, model: str, known: str
) -> None:
    values = {"Manufacturer": manufacturer, "ManufacturerModelName": model, "PatientName": "Zwiebel^Ottokar"}
    facts = only(dicom, tmp_path, 3, **values).facts
    assert facts.get("model", "") == known
    assert facts["manufacturer"] == vendor_of(manufacturer)


@pytest.mark.parametrize(
    ("name", "model", "known"),
    [
        ("Li^Wu", "MAGNETOM Vida", "Vida"),
        ("Go^Li", "SOMATOM go.Up", ""),
        ("Wu^All", "go.All", ""),
        ("Amira^Li", "Amira", ""),
        ("Vision^Ng", "Biograph Vision 600", ""),
        ("Ng^Duo", "Biograph Duo", ""),
        ("Doe^Ann", "Emotion 16", "Emotion 16"),
    ],
)
def test_short_name_parts_are_compared_too(
    tmp_path: Path, dicom: SimpleNamespace, name: str, model: str, known: str
) -> None:
    assert only(dicom, tmp_path, 3, PatientName=name, ManufacturerModelName=model).facts.get("model", "") == known


def test_short_names() -> None:
    header = Dataset()
    header.PatientName, header.OtherPatientNames = "Li^Wu^J.^Dr", ["Ng^Ann", "Doe^Jane"]
    item = Dataset()
    item.OperatorsName, item.StationName = "Van den Berg^Bo", "CT1"
    header.ReferencedPatientSequence = [item]
    assert short_names(header) == {"Li", "Wu", "Dr", "Ng", "Ann", "Doe", "Van", "den", "Bo"}


@pytest.mark.parametrize(
    ("name", "vendor"),
    [
        ("SIEMENS", "siemens"),
        ("Siemens Healthineers", "siemens"),
        ("GE MEDICAL SYSTEMS", "ge"),
        ("G.E. Medical Systems", "ge"),
        ("GE", "ge"),
        ("Philips Medical Systems, Inc.", "philips"),
        ("TOSHIBA_MEC", "toshiba"),
        ("UIH", "united imaging"),
        ("FUJIFILM Corporation", "fujifilm"),
        ("Agfa-Gevaert AG", "agfa"),
        ("", ""),
        ("George", ""),
        ("Dr. Age", ""),
        ("Philipsen Radiology", ""),
    ],
)
def test_vendors(name: str, vendor: str) -> None:
    assert vendor_of(name) == vendor


@pytest.mark.parametrize(
    ("description", "sequence"),
    [
        ("t1_mprage_sag", "t1"),
        ("AX T2 TSE", "t2"),
        ("ax T2 FLAIR", "flair"),
        ("t1_tirm_tra_dark-fluid", "flair"),
        ("ep2d_diff_b1000_ADC", "adc"),
        ("DWI b1000", "dwi"),
        ("TOF_3D", "mra"),
        ("SWI_Images", "swi"),
        ("PD fs", "pd"),
        ("fMRI rest", "bold"),
        ("John Smith", ""),
        ("localizer", ""),
    ],
)
def test_sequences(description: str, sequence: str) -> None:
    assert sequence_of(description) == sequence


def test_faces(tmp_path: Path, dicom: SimpleNamespace) -> None:
    mr = {"Modality": "MR", "SOPClassUID": MRImageStorage}
    assert only(dicom, tmp_path / "a", BodyPartExamined="HEAD").warnings == ("face",)
    assert only(dicom, tmp_path / "b", SeriesDescription="t1_mprage", **mr).warnings == ("face",)
    assert only(dicom, tmp_path / "c", BodyPartExamined="CHEST", StudyDescription="head to chest").warnings == ()
    assert only(dicom, tmp_path / "d", BodyPartExamined="HEAD", RecognizableVisualFeatures="NO").warnings == ()
    assert only(dicom, tmp_path / "e", BodyPartExamined="HEAD", DeidentificationMethod="mri_deface").warnings == ()
    assert only(dicom, tmp_path / "f", 5, BodyPartExamined="HEAD").warnings == ()  # 20 mm hold no face
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "113101", "DCM", "Clean"
    assert (
        only(dicom, tmp_path / "g", BodyPartExamined="HEAD", DeidentificationMethodCodeSequence=[code]).warnings == ()
    )


@pytest.mark.parametrize(
    ("sop_class", "modality", "annotation", "warned"),
    [
        ("7", "OT", None, True),
        ("7", "OT", "NO", False),
        ("7", "OT", "YES", True),
        ("6.1", "US", None, True),
        ("6.1", "US", "NO", False),
        ("1", "CR", None, False),
        ("1", "CR", "YES", True),
        ("77.1.4", "XC", None, True),
    ],
)
def test_burned_in_annotations(
    tmp_path: Path, dicom: SimpleNamespace, sop_class: str, modality: str, annotation: str | None, warned: bool
) -> None:
    dataset = dicom.header(SOPClassUID=STORAGE + sop_class, Modality=modality)
    if annotation:
        dataset.BurnedInAnnotation = annotation
    dicom.put_pixels(dataset, dicom.texture(20, 30, 1))
    dicom.save(dataset, tmp_path / "x")
    (scan,), _ = dicom.load(tmp_path)
    assert scan.warnings == (("burned_in_annotation",) if warned else ())


def test_a_picture_of_a_ct_is_no_ct(tmp_path: Path, dicom: SimpleNamespace) -> None:
    dataset = dicom.header(SOPClassUID=STORAGE + "7", Modality="CT")
    dicom.put_pixels(dataset, dicom.texture(20, 30, 1))
    dicom.save(dataset, tmp_path / "x")
    assert metadata_of(scan_headers([tmp_path / "x"])[0]).modality == "ot"


def test_identifying_strings(tmp_path: Path, dicom: SimpleNamespace) -> None:
    inner = Dataset()
    inner.PatientID, inner.ReferencedSOPInstanceUID = "HIDDEN-9", "1.2.3.4.5.6"
    (path,) = dicom.slices(
        tmp_path,
        [(0.0, 0.0, 0.0)],
        PatientBirthDate="19520301",
        InstitutionName="St. Anna Hospital",
        AccessionNumber="A-778899",
        DeviceSerialNumber="60064",
        ReferencedImageSequence=[inner],
        OperatorsName="Kim^Lee",
        BodyPartExamined="HEAD",
        PerformingPhysicianName="Van der Berg^Otto",
        StationName="CT1",
    )
    found = identifying_strings(path)
    for one in (
        "Doe^Jane",
        "Jane",
        "K-4711",
        "19520301",
        "20200101",
        "St. Anna Hospital",
        "Anna",
        "A-778899",
        "60064",
        "HIDDEN-9",
        "1.2.3.4.5.6",
        "1.2.826.0.1.77.1",
        "Otto",
        "Berg",
    ):
        assert one in found
    assert not {"SIEMENS", "HEAD", "CT1", "Hospital", "Doe", "1.2.840.10008.1.2.1"} & found
    (tmp_path / "text.txt").write_text("no DICOM")
    assert identifying_strings(tmp_path / "text.txt") == set()


def test_nothing_identifying_is_in_a_scan(tmp_path: Path, dicom: SimpleNamespace) -> None:
    files = dicom.slices(
        tmp_path,
        [(0.0, 0.0, 2.0 * k) for k in range(4)],
        BodyPartExamined="HEAD",
        ManufacturerModelName="Force",
        InstitutionName="Forceville Clinic",
        SeriesDescription="Doe Jane t1",
    )
    (scan,), _ = dicom.load(tmp_path)
    told = repr((scan.facts, scan.modality, scan.warnings, scan.part, scan.patient, scan.split)).casefold()
    for file in files:
        for one in identifying_strings(file):
            assert one.casefold() not in told
    assert np.isfinite(scan.affine).all()
