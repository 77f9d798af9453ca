"""Columns called as labels are: those that hold persons, days, numbers or places stay behind, and classes do not."""

from pathlib import Path

import pytest

from scanfoundry.datasets.labels.label_index import open_labels
from scanfoundry.datasets.labels.tables.people import are_persons
from scanfoundry.datasets.labels.tables.personal import telling_value
from scanfoundry.datasets.labels.tables.table import Columns

_PERSONS = (
    "Hans Müller|Anna Schmidt|John Smith|Jane Doe|María García|Jean Dupont|Marie Dupont|Giuseppe Rossi|Jan Jansen|"
    "MÜLLER HANS|Mueller, Hans|smith_john|hans.mueller|Meniscus tear, Hr. Huber|cyst in Peter Huber|J. Smith|Smith J.|"
    "Doe, J|L. Garcia|Mme Durand|Sr. García|Dr Rossi|Dr.Rossi|dr. smith|herr müller|patient: Smith|Dhr. Vandersloot|"
    "Sig. Obermoser|pt Wolpertinger|Иванов Иван|محمد علي|Piotr Nowak|fracture - John Smith 1956"
)
_OTHERS = {
    "days": "44-04-044|26 de septiembre de 2013|26SEP2013|26. Oktober 1931|26 septembre 2013|2013-09|2013年9月26日",
    "years of birth": "born 1931|geb. 1944|née en 1950",
    "telephone numbers": "555.123.4567",
    "record numbers or days": "MRN44040|44 14 344|PID 771",
    "identifiers": "3f2504e0-4f89-11d3-9a0c-0305e82c3301",
    "addresses": "Hauptstraße 9|12 Main Street|Rosenweg 12|rue de la Paix 12",
    "several fields or lines": "{'name': 'x'}|benign\nZwiebelmann",
}
TELLING = {value: what for what, values in _OTHERS.items() for value in values.split("|")}
TELLING |= dict.fromkeys(_PERSONS.split("|"), "names of persons")
FINE = (
    "Basal Cell Carcinoma|Crohn Disease|M. Crohn|Alexander Disease|Wilson Disease|Werner Syndrome|Charcot Marie Tooth|"
    "Weber A|Smith Fracture|Hodgkin Lymphoma|BI-RADS 4a|Gleason 4+3=7|WHO grade 2 (2021)|L. Lung|R. Kidney|N. Vagus|"
    "V. Cava|E. coli|Patient Motion|ALI Moderate|Pneumonia, Viral|Carcinoma, Hepatocellular|pT2a|5-10 mm|ICD C34.1|"
    "COVID-19|Salter Harris II|Machado Joseph Disease|Bernard Soulier Syndrome|White Matter|Luminal A|Ann Arbor II|"
    "18F-FDG|no finding|Support Devices|Guillain Barré|via catheter|vertebrae_L5"
)


@pytest.mark.parametrize("name", ["class", "target", "diagnosis"])
@pytest.mark.parametrize("value", TELLING)
def test_what_tells_stays_behind_though_it_recurs_and_is_called_a_label(tmp_path: Path, name: str, value: str) -> None:
    assert telling_value(value) == TELLING[value]
    lines = "".join(f'{number},"{value if number % 2 else "normal"}"\n' for number in range(6))
    (tmp_path / "l.csv").write_text(f"id,{name}\n{lines}", encoding="utf-8")
    label_index = open_labels([tmp_path / "l.csv"], [], False, Columns(insist=False))
    ref = label_index.of("1.png")
    assert ref is not None
    assert (ref.classes, ref.targets) == ({}, {})
    assert value not in "".join(label_index.notes)


@pytest.mark.parametrize("value", FINE.split("|"))
def test_classes_are_no_persons(value: str) -> None:
    assert telling_value(value) == ""


def test_family_names_alone_are_persons_where_all_values_are_some() -> None:
    assert are_persons(["Müller", "Huber"])
    assert not are_persons(["Weber", "Colles"])
    assert not are_persons(["Weber"])


@pytest.mark.parametrize(("cells", "stored"), [(("81377", "80331"), {}), (("095Y", "034Y"), {"class": "90+"})])
def test_postcodes_are_no_classes_and_ages_are_capped_whatever_they_are_called(
    tmp_path: Path, cells: tuple[str, str], stored: dict[str, str]
) -> None:
    (tmp_path / "l.csv").write_text(f"id,class\n1,{cells[0]}\n2,{cells[1]}\n")
    ref = open_labels([tmp_path / "l.csv"], [], False, Columns(insist=False)).of("1.png")
    assert ref is not None
    assert ref.classes == stored
