"""Which columns of a list travel: those asked for, those of agreed names, and none that tells a person in silence."""

from pathlib import Path

import pytest

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.labels.label_index import LabelIndex, open_labels
from scanfoundry.datasets.labels.tables.ages import capped_text, is_age, oldest_of
from scanfoundry.datasets.labels.tables.columns import agreed
from scanfoundry.datasets.labels.tables.personal import telling_name, telling_value, telling_values
from scanfoundry.datasets.labels.tables.table import Columns


def index_of(folder: Path, text: str, *asked: str, insist: bool = False) -> LabelIndex:
    (folder / "l.csv").write_text(text, encoding="utf-8")
    return open_labels([folder / "l.csv"], [], False, Columns(asked=asked, insist=insist))


def column(folder: Path, name: str, *cells: str, asked: bool = True, insist: bool = False) -> LabelIndex:
    lines = [f"id,{name}", *(f's{number},"{cell}"' for number, cell in enumerate(cells))]
    return index_of(folder, "\n".join(lines), *([name] if asked else []), insist=insist)


@pytest.mark.parametrize(
    "name", ["class", "Label", "TARGET", "ground_truth", "Class Label", "class_name", "diagnosis", "Diagnose", "dx"]
)
def test_agreed_names_travel_by_themselves(tmp_path: Path, name: str) -> None:
    assert agreed(name)
    found = index_of(tmp_path, f"id,{name},other\ns0,benign,1\ns1,malignant,2\n")
    ref = found.of("s0.png")
    assert ref is not None
    assert (ref.classes, ref.targets) == ({name: "benign"}, {})
    taken, left = found.notes
    assert taken == f"l.csv: column '{name}' taken as classes: 2 values in 2 rows (benign, malignant)"
    assert left == "l.csv: left out, since nobody asked for them with --label-columns: 'other'"


@pytest.mark.parametrize(
    "name", ["age", "sex", "grade", "score", "patient class", "class_of_dr_meier", "label comment", ""]
)
def test_nothing_else_travels_unasked(tmp_path: Path, name: str) -> None:
    ref = index_of(tmp_path, f"id,{name}\ns0,1\ns1,2\n").of("s0.png")
    assert ref is not None
    assert (ref.classes, ref.targets) == ({}, {})


def test_numbers_called_target_are_numbers(tmp_path: Path) -> None:
    found = index_of(tmp_path, "id,target,volume\ns0,1.5,3\ns1,-2,4\ns2,0.25,5\ns3,7,6\n", "volume")
    ref = found.of("s1.png")
    assert ref is not None
    assert ref.targets == {"target": -2.0, "volume": 4.0}
    assert found.notes == [
        "l.csv: column 'target' taken as numbers: 4 values in 4 rows (-2, 1.5, 7)",
        "l.csv: column 'volume' taken as numbers: 4 values in 4 rows (3, 5, 6)",
    ]


def test_a_column_is_asked_for_by_its_name_but_for_case_and_margin(tmp_path: Path) -> None:
    ref = index_of(tmp_path, "id, Grade \ns0,2\n", "grade").of("s0.png")
    assert ref is not None
    assert ref.targets == {"Grade": 2.0}
    with pytest.raises(UserError, match="'Grade' or 'grade'"):
        index_of(tmp_path, "id,Grade,grade\ns0,2,3\n", "GRADE")


@pytest.mark.parametrize(
    ("text", "asked", "said"),
    [
        ("id,grade\ns0,2\n", "stage", "no list of --labels has such a column; their columns are: id, grade"),
        ("id,grade\ns0,\n", "grade", "column 'grade' of --label-columns is empty"),
        ("id,grade\ns0,2\n", "id", "column 'id' of --label-columns places the labels"),
        ("id,x0,y0,x1,y1,g\ns0,1,2,3,4,a\ns0,1,2,3,5,b\n", "g", "column 'g' of --label-columns differs between"),
    ],
)
def test_what_was_asked_for_in_vain_is_said(tmp_path: Path, text: str, asked: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        index_of(tmp_path, text, asked)


TELLING = {
    "names of persons": ["DOE^JOHN", "Meier^Ida", "Dr. House", "seen by Frau Huber"],
    "e-mail addresses": ["ida@klinik.example"],
    "days": ["1931-04-12", "12.4.1931", "4/12/31", "12 Apr 1931", "April 12, 1931", "3. März 2020"],
    "telephone numbers": ["+49 89 1234567", "089 4400 12345", "(555) 123-4567"],
    "record numbers or days": ["MRN404040", "1234567"],
    "paths or files": ["a/b", "x.dcm"],
    "long text": ["word " * 20],
}


@pytest.mark.parametrize(("what", "value"), [(what, value) for what, values in TELLING.items() for value in values])
@pytest.mark.parametrize("name", ["label", "remarkable"])
def test_values_that_tell_are_refused_or_left_out_unless_somebody_insists(
    tmp_path: Path, name: str, what: str, value: str
) -> None:
    cells = ("benign", value, "benign", "malignant")
    said = f"looks as if it held {what}; add --allow-identifying to store it all the same"
    with pytest.raises(UserError, match=said) as refusal:
        column(tmp_path, name, *cells)
    assert value not in str(refusal.value)
    insisted = column(tmp_path, name, *cells, insist=True).of("s1.png")
    assert insisted is not None
    assert insisted.classes == {name: value.strip()}
    unasked = column(tmp_path, name, *cells, asked=False)
    assert not any(unasked.of(f"s{number}.png").classes for number in range(4))  # type: ignore[union-attr]
    assert not any(value in note for note in unasked.notes)


def test_values_that_hardly_recur_years_and_surnames(tmp_path: Path) -> None:
    assert telling_values([f"word{chr(97 + number)}" for number in range(10)]).startswith("text that does not recur")
    assert telling_values(["benign", "malignant"]) == ""
    assert telling_values(["Meier, Ida", "Huber, Sepp", "Doe, John"]) == "names of persons"
    assert telling_values(["1931", "1950", "2003"]) == "years"
    assert telling_values(["19310412", "20030930"]) == "days"
    assert telling_values([str(7_000_000 + number) for number in range(5)]) == "record numbers or days"
    assert telling_values([str(number) for number in range(500)]) == ""
    for fine in ("MR Angiography", "MS lesion", "DR severe", "T2*", "10^3", "grade 3", "90+", "left-right", "L4-L5"):
        assert telling_value(fine) == "", fine


@pytest.mark.parametrize(
    "name",
    ["patient_name", "PatientName", "vorname", "Geburtsdatum", "date of birth", "MRN", "Patient ID", "id", "patient",
     "study_date", "StudyInstanceUID", "e-mail", "Telefon", "adresse", "referring_physician", "hôpital", "Bemerkung"],
)  # fmt: skip
def test_a_column_called_as_one_that_tells_needs_insistence(tmp_path: Path, name: str) -> None:
    assert telling_name(name)
    if name == "id":
        return
    with pytest.raises(UserError, match="is called as one that tells a person, a place or a day; add --allow-identify"):
        column(tmp_path, name, "a", "b", "a")
    ref = column(tmp_path, name, "a", "b", "a", insist=True).of("s1.png")
    assert ref is not None
    assert ref.classes == {name: "b"}


@pytest.mark.parametrize(
    "name",
    ["grade", "survival_time", "tumour site", "stage", "label_id", "class", "image quality", "state", "update",
     "damage", "dosage", "laterality", "BI-RADS", "volume_ml", "ADC", "candidate"],
)  # fmt: skip
def test_columns_of_measurements_are_called_otherwise(name: str) -> None:
    assert not telling_name(name)


@pytest.mark.parametrize(
    "name", ["age", "Patient Age", "PatientAge", "age_years", "Alter", "âge", "edad", "age at scan"]
)
def test_ages_above_89_are_90(tmp_path: Path, name: str) -> None:
    assert is_age(name)
    found = column(tmp_path, name, "61", "89.5", "90", "97", "104")
    refs = [found.of(f"s{number}.png") for number in range(5)]
    assert [ref.targets[name] for ref in refs if ref] == [61, 89.5, 90, 90, 90]
    assert found.notes == [
        f"l.csv: column '{name}' taken as numbers: 3 values in 5 rows (61, 89.5, 90); "
        "2 ages above 89 are stored as 90"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("cell", "told"),
    [("092Y", "90+"), ("089Y", "089Y"), ("1100M", "90+"), ("090M", "090M"), ("92", "90+"), ("92 years", "90+"),
     ("> 89", "90+"), (">=90", "90+"), ("90-99", "90+"), ("80-89", "80-89"), ("90+", "90+"), ("95 Jahre", "90+"),
     ("adult", "adult"), ("004W", "004W"), ("061Y", "061Y")],
)  # fmt: skip
def test_ages_as_classes(tmp_path: Path, cell: str, told: str) -> None:
    assert capped_text(cell) == told
    ref = column(tmp_path, "age group", cell, "child", cell).of("s0.png")
    assert ref is not None
    assert ref.classes == {"age group": told}


def test_ages_in_other_units_and_of_no_person() -> None:
    assert oldest_of("age_months", 70) == oldest_of("age", 1100) == 1080
    assert oldest_of("age in days", 300) == oldest_of("age", 33_000) == 90 * 365.2425
    assert oldest_of("age_years", 200) == oldest_of("age", 104) == 90
    for name in ("bone_age", "gestational age", "stage", "dosage", "percentage", "image"):
        assert not is_age(name)


def test_labels_of_boxes_and_masks_name_no_person(tmp_path: Path) -> None:
    text = "id,x0,y0,x1,y1,label\ns0,1,2,3,4,mass\ns1,1,2,3,4,DOE^JOHN\n"
    with pytest.raises(UserError, match=r"l\.csv: a label of its boxes or masks looks as if .*persons; add --allow"):
        index_of(tmp_path, text)
    assert index_of(tmp_path, text, insist=True).of("s1.png") is not None
    assert index_of(tmp_path, text.replace("DOE^JOHN", "left/right MR finding")).of("s1.png") is not None
