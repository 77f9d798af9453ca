"""A list beside the scans with everything that a hospital knows of a person: none of it travels, nor is it printed."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import warm
from PIL import Image

from scanfoundry.datasets.labels.label_index import open_labels
from scanfoundry.datasets.labels.tables.table import Columns
from scanfoundry.datasets.shards.reader import DataSet

ROWS = 12
PEOPLE = ["Quastenflosser", "Wolpertinger", "Zwiebelmann", "Eulenspieglein"]
# Each recurs, as a value of a class does, so that nothing but its name or its look tells.
_TOLD = {
    "name|patient_name|PatientName|Patient's Name|surname|last name": PEOPLE,
    "vorname|Nachname|Nom|prénom|apellidos": [each[::-1] for each in PEOPLE],
    "dob|birth_date|Geburtsdatum|date de naissance": ["1931-04-12", "12.04.1931"],
    "year_of_birth|Jahrgang|YOB|birthyear": ["1931", "1926", "1999"],
    "age|Patient Age|Alter|âge": ["9173", "9284"],  # of nobody: to be found again
    "mrn|record_number|Fallnummer|KVNR|case": ["4404044", "4404055"],
    "accession|AccessionNumber|study_id|StudyInstanceUID": ["ACC-771904", "1.2.77.5151"],
    "ssn|insurance_no|Versichertennummer": ["123-45-6789", "X771904332"],
    "phone|Telefon|mobile": ["+49 89 7719040", "(555) 123-4567"],
    "email|E-Mail|contact": ["ida@zwiebelstadt.example", "sepp@zwiebelstadt.example"],
    "address|Adresse|zip|PLZ|city|Wohnort": ["Fliederhof 99", "Zwiebelstadt"],
    "physician|referring_physician|Hausarzt|radiologist|operator|médecin": ["Dr. Vandersloot", "Obermoser"],
    "institution|hospital|Klinik|station|site|department|scanner": ["Trudering"],
    "study_date|admission|Aufnahmedatum|scan time|year": ["20130926", "2013-09-26"],
    "comment|notes|Bemerkung|report|Befund|history": ["Nachbar von Xanthippe"],
    "ethnicity|religion|Beruf|sex|nationality|": ["Marsbewohner", "Leuchtturmwart"],
}
COLUMNS = {name: values for names, values in _TOLD.items() for name in names.split("|")}
LOOKING = [
    "dob",
    "YOB",
    "mrn",
    "accession",
    "ssn",
    "phone",
    "email",
    "physician",
    "study_date",
]  # by their values alone
SECRETS = {value for values in COLUMNS.values() for value in values}


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory, write_key: Callable[[Path, str], Path]) -> Path:
    root = tmp_path_factory.mktemp("scans")
    (root / "in").mkdir()
    rng = np.random.default_rng(0)
    for number in range(ROWS):
        Image.fromarray(rng.integers(0, 255, (24, 30)).astype(np.uint8)).save(root / "in" / f"s{number:02d}.png")
    write_key(root / "site.key", "columns")
    return root


def build(root: Path, out: Path, columns: dict[str, list[str]], *words: str) -> subprocess.CompletedProcess[str]:
    """`scanfoundry data build` of the scans, with a list of these columns, whose values are gone round."""
    header = ["file", *(f'"{name}"' for name in columns)]
    lines = [[f"s{n:02d}.png", *(f'"{v[n % len(v)]}"' for v in columns.values())] for n in range(ROWS)]
    listed = out.with_suffix(".csv")
    listed.write_text("\n".join(",".join(line) for line in [header, *lines]), encoding="utf-8")
    command = [warm.SCANFOUNDRY, "data", "build", str(root / "in"), "--out", str(out)]
    command += ["--labels", str(listed), "--key-file", str(root / "site.key"), "--workers", "1", *words]
    return warm.run(command, capture_output=True, text=True, env={"OMP_NUM_THREADS": "1", "COLUMNS": "200"})


def found(out: Path, said: str, secrets: set[str]) -> set[str]:
    """Which secrets stand in the shards, indices, tables and lists of `out`, or in what was said."""
    content = b"".join(path.read_bytes() for path in sorted(out.iterdir())) + said.encode()
    labels = [entry.labels for shard in DataSet(out).manifest.shards for entry in DataSet(out).index(shard).samples]
    words = json.dumps([label.model_dump() if label else None for label in labels], ensure_ascii=False).encode()
    return {each for each in secrets if each.encode() in (content if len(each) > 5 else words + said.encode())}


def test_none_of_them_travels_or_is_printed(scans: Path, tmp_path: Path) -> None:
    assert len(COLUMNS) > 64
    done = build(scans, tmp_path / "out", {**COLUMNS, "class": ["benign", "malignant"]})
    assert (done.returncode, done.stderr) == (0, "")
    assert found(tmp_path / "out", done.stdout, SECRETS) == set()
    assert found(tmp_path / "out", "", {"benign", "malignant"}) == {"benign", "malignant"}  # the search finds
    assert "column 'class' taken as classes: 2 values in 12 rows (benign, malignant)" in done.stdout
    for name in COLUMNS:
        assert f"'{name}'" in done.stdout


@pytest.mark.parametrize("agreed", ["label", "target"])
@pytest.mark.parametrize("name", LOOKING)
def test_what_looks_as_if_it_told_a_person_stays_behind_under_an_agreed_name(
    tmp_path: Path, agreed: str, name: str
) -> None:
    values = COLUMNS[name]
    lines = [f's{number:02d},"{values[number % len(values)]}"' for number in range(ROWS)]
    (tmp_path / "l.csv").write_text("\n".join([f"file,{agreed}", *lines]))
    label_index = open_labels([tmp_path / "l.csv"], [], False, Columns(insist=False))
    ref = label_index.of("s00.png")
    assert ref is not None
    assert (ref.classes, ref.targets) == ({}, {})
    (note,) = label_index.notes
    assert f"column '{agreed}' left out: looks as if it held" in note
    assert not [each for each in values if each in note]


def test_asked_for_it_is_refused_in_one_line_that_says_how_to_insist(scans: Path, tmp_path: Path) -> None:
    columns = {"referrer": ["Vandersloot^Hieronymus", "Obermoser^Kunigunde"], "age": ["61", "97"]}
    done = build(scans, tmp_path / "out", columns, "--label-columns", "age,referrer")
    assert done.returncode == 2
    assert not (tmp_path / "out").exists()
    (line,) = done.stderr.splitlines()
    assert line.endswith("is called as one that tells a person, a place or a day; "
                         "add --allow-identifying to store it all the same")  # fmt: skip
    done = build(scans, tmp_path / "out", columns, "--label-columns", "age,referrer", "--allow-identifying")
    assert (done.returncode, done.stderr) == (0, "")
    told = found(tmp_path / "out", done.stdout, {"Vandersloot", "97"})
    assert told == {"Vandersloot"}
    assert (
        "column 'age' taken as numbers: 2 values in 12 rows (61, 90); 6 ages above 89 are stored as 90" in done.stdout
    )
