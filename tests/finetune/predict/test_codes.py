import pytest
from hypothesis import given
from hypothesis import strategies as st

from scanfoundry.finetune.predict.codes import concept_of, dicom_text, own_code


@pytest.mark.parametrize(
    ("name", "category", "value"),
    [
        ("liver", "Anatomical Structure", "10200004"),
        ("Left_Kidney", "Anatomical Structure", "64033007"),
        ("hippocampus", "Anatomical Structure", "5366008"),
        ("edema", "Morphologically Abnormal Structure", "79654002"),
        ("lymph node", "Tissue", "59441001"),
    ],
)
def test_names_that_dicom_knows(name, category, value):
    found, kind = concept_of(name)
    assert (found.meaning, kind.value, kind.scheme_designator) == (category, value, "SCT")


@pytest.mark.parametrize("name", ["anterior part", "dir", "__doc__", "left", "", "Läsion 7 – groß"])
def test_other_names_get_a_private_code(name):
    category, kind = concept_of(name or "x")
    assert (category.value, kind.scheme_designator) == ("309825002", "99SCANFOUNDRY")


@given(st.text(min_size=1, max_size=90), st.text(min_size=1, max_size=90))
def test_private_codes_fit_and_long_names_stay_apart(one, other):
    codes = own_code(one), own_code(other)
    assert all(0 < len(code.value) <= 16 for code in codes)
    assert all(code.meaning for code in codes)
    if min(len(one), len(other)) > 16 and one != other:
        assert codes[0].value != codes[1].value


@pytest.mark.parametrize("name", ["a\\b", "a\nb", "a\x1b[2Jb", "\\", "\n", " a ", "x" * 70 + "\\"])
def test_a_name_is_one_value_of_dicom(name):
    text = dicom_text(name)
    assert text
    assert text == text.strip()
    assert len(text) <= 64
    assert text.isprintable()
    assert "\\" not in text
    assert own_code(name).CodeMeaning == text  # a backslash would make two values of it
