"""Tables that a spreadsheet opens: no cell is a formula, no number is a text, no name commands a terminal."""

import csv

import pytest

from scanfoundry.finetune.export.bundle_runner import _cell
from scanfoundry.finetune.predict.tables import cell, write_csv

FORMULAS = [
    "=1+1", "=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "＝1+1", "－1-1",
    "-x.nii.gz", '=HYPERLINK("http://x","y")', "+49 89 1234567",
]  # fmt: skip


@pytest.mark.parametrize("text", FORMULAS)
@pytest.mark.parametrize("escape", [cell, _cell])
def test_formulas_are_texts(escape, text):
    found = escape(text)
    assert found.startswith("'")
    assert found.isprintable()
    assert found[1:] == text or not text.isprintable()


@pytest.mark.parametrize("value", [-3, -0.5, 1e-7, 0, "", None, "a.nii.gz", "liver", "a=b", "x-1", "µl", "欧阳", "1.5"])
@pytest.mark.parametrize("escape", [cell, _cell])
def test_all_else_is_as_it_was(escape, value):
    assert escape(value) == value
    assert type(escape(value)) is type(value)


@pytest.mark.parametrize("text", ["-3", "+1.5e-3", "-.5", "-inf"])
def test_numbers_that_are_texts_stay_numbers(text):
    assert cell(text) == text


def test_a_table_has_neither_formulas_nor_control_characters(tmp_path):
    rows = [
        {"file": "=1+1.nii.gz", "prediction": "-1", "-tumour ml": -1.25, "=x": "a\x1b[31m\nb\u202e"},
        {"file": "b,c;=2.nii.gz", "prediction": "@b", "-tumour ml": "", "=x": "é"},
    ]
    write_csv(tmp_path / "t.csv", rows)
    text = (tmp_path / "t.csv").read_text(encoding="utf-8")
    assert not [each for each in text if not each.isprintable() and each != "\n"]
    assert list(csv.reader(text.splitlines())) == [
        ["file", "prediction", "'-tumour ml", "'=x"],
        ["'=1+1.nii.gz", "-1", "-1.25", r"a\x1b[31m\nb\u202e"],
        ["b,c;=2.nii.gz", "'@b", "", "é"],
    ]
