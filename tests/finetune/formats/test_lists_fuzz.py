"""Any list, however odd, is read whole or refused in words: every row is a case, counted, or in a message."""

import csv
import io
import json
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.labels.tables.columns import value_of
from scanfoundry.datasets.labels.tables.table import Columns, read_table
from scanfoundry.finetune.config.study import LabelledData
from scanfoundry.finetune.config.tasks.classification import ClassificationTask
from scanfoundry.finetune.config.tasks.detection import DetectionTask
from scanfoundry.finetune.config.tasks.regression import RegressionTask
from scanfoundry.finetune.config.tasks.segmentation import SegmentationTask
from scanfoundry.finetune.formats import discover
from scanfoundry.finetune.formats.spelling import one_spelling

NAMES = "abcdefgh"
TASKS = [
    SegmentationTask(),
    ClassificationTask(),
    ClassificationTask(label_column="label"),
    RegressionTask(),
    DetectionTask(),
]
SETTINGS = settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def root():
    """Files that are only looked for."""
    with tempfile.TemporaryDirectory() as folder:
        for part in ("i", "m"):
            (Path(folder) / part).mkdir()
            for name in NAMES:
                (Path(folder) / part / f"{name}.nii.gz").write_bytes(b"")
        yield Path(folder)


def told(path, task):
    """(cases, left out) of a list, or None where it is refused; nothing else may happen."""
    try:
        found = discover(LabelledData(path=str(path), modality="mr"), task)
    except UserError:
        return None
    assert len({case.key for case in found.cases}) == len(found.cases)
    return len(found.cases), sum(found.left_out.values())


images = st.sampled_from([f"i/{name}.nii.gz" for name in NAMES])
odd = st.one_of(
    st.none(), st.booleans(), st.integers(-1, 3), st.floats(), st.text(max_size=6), st.lists(images, max_size=3),
    st.dictionaries(st.sampled_from(["t1", "image"]), images, max_size=2),
    st.lists(st.lists(images, max_size=2), max_size=2),
)  # fmt: skip
paths = st.one_of(images, images, images.map(lambda path: f"./{path}"), odd)
labels = st.one_of(
    images.map(lambda path: path.replace("i/", "m/")), odd, st.sampled_from(["x", "y", "X", "1", "1.0", "01"])
)
cases = st.fixed_dictionaries(
    {"image": paths},
    optional={"label": labels, "class": labels, "value": odd, "patient": odd, "split": odd, "fold": odd, "seg": labels},
)
entries = st.lists(st.one_of(cases, cases, cases, images, odd), max_size=6)
sides = st.sampled_from(
    ["training", "train", "validation", "val", "test", "testing", "Test", "holdout", "labels", "name", "modality"]
)
contents = st.one_of(entries, st.dictionaries(sides, st.one_of(entries, entries, odd), max_size=4), odd)
good = st.lists(images, min_size=1, max_size=8, unique=True)


def right(name, number):
    """An entry that every task can read, but for the detection's boxes."""
    return {
        "image": name,
        "seg": name.replace("i/", "m/"),
        "class": "xy"[number % 2],
        "label": number % 2,
        "value": 0.5,
    }


changes = st.lists(
    st.tuples(st.sampled_from(["image", "seg", "class", "label", "value", "split", "patient"]), odd), max_size=2
)


@SETTINGS
@given(good, changes, st.lists(odd, max_size=1), st.sampled_from(["", "training", "Testing"]), st.sampled_from(TASKS))
def test_a_right_list_with_something_odd_in_it(root, names, changed, more, side, task):
    rows = [right(name, number) for number, name in enumerate(names)]
    for number, (column, value) in enumerate(changed):
        rows[number % len(rows)][column] = value
    content = [*rows, *more]
    (root / "odd.json").write_text(json.dumps({side: content} if side else content))
    counts = told(root / "odd.json", task)
    assert counts is None or sum(counts) == len(content)


@SETTINGS
@given(contents, st.sampled_from(TASKS))
def test_any_json_is_read_whole_or_refused(root, content, task):
    path = root / "list.json"
    path.write_text(json.dumps(content))
    counts = told(path, task)
    if counts is not None:
        lists = content.values() if isinstance(content, dict) else [content]
        rows = [each for listed in lists if isinstance(listed, list) for each in listed]
        named = [each for each in rows if isinstance(each, dict | list) or (isinstance(each, str) and "/" in each)]
        assert sum(counts) >= len(named)  # names of other keys may be lists too
        assert sum(counts) <= len(rows)


@SETTINGS
@given(good, st.lists(st.sampled_from(["mask", "none", "string"]), min_size=8, max_size=8), st.data())
def test_right_lists_lose_no_case(root, names, kinds, data):
    """Of right entries, dealt to sides at will, those with a mask are cases and the others are counted."""
    rows = []
    for name, kind in zip(names, kinds, strict=False):
        mask = name.replace("i/", "m/")
        rows.append({"mask": {"image": name, "label": mask}, "none": {"image": f"./{name}"}, "string": name}[kind])
    content: dict = {}
    for row in rows:
        content.setdefault(data.draw(st.sampled_from(["training", "validation", "test", "testing"])), []).append(row)
    (root / "good.json").write_text(json.dumps(content))
    counts = told(root / "good.json", SegmentationTask())
    masks = sum(kind == "mask" for kind, _ in zip(kinds, names, strict=False))
    assert counts == ((masks, len(names) - masks) if masks else None)


cells = st.one_of(
    st.sampled_from(["i/a.nii.gz", "i/b.nii.gz", "m/a.nii.gz", "x", "y", "", "nan", " 1", "1.0", "0.5"]),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5),
)
known = ["image", " Image", "label", "class", "id", "value", "split", "patient", "", "label", "CLASS"]
boxes = ["x0", "y0", "x1", "y1", "w", "h", "x", "y", "xmin"]
headers = st.lists(st.sampled_from([*known, *boxes]), min_size=1, max_size=7)
written = st.tuples(
    st.sampled_from(",;\t|"), st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]), st.sampled_from(["\n", "\r\n"])
)


@SETTINGS
@given(headers, st.lists(st.lists(cells, max_size=8), max_size=6), written, st.sampled_from(TASKS))
def test_any_csv_is_read_whole_or_refused(root, header, lines, how, task):
    separator, encoding, ending = how
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=separator, lineterminator=ending).writerows([header, *lines])
    path = root / "list.csv"
    path.write_bytes(text.getvalue().encode(encoding, "surrogatepass"))
    counts = told(path, task)
    if counts is not None:
        assert sum(counts) == sum(any(cell.strip() for cell in line) for line in lines)
    for chosen in (Columns(), Columns(classes=("class",)), Columns(classes=())):
        try:
            found = read_table(path, chosen)
        except UserError:
            continue
        named = {name for name, _ in found.refs}
        assert len(named) == len(found.refs)


@SETTINGS
@given(good, st.sampled_from(["image", " Image ", "FILE"]), st.lists(cells, min_size=8, max_size=8), written)
def test_right_csvs_lose_no_case(root, names, image, values, how):
    """Whatever the class is called, the rows with one are cases, unless spellings are asked about or there is one."""
    separator, encoding, ending = how
    text = io.StringIO(newline="")
    rows = list(zip(names, values, strict=False))
    csv.writer(text, delimiter=separator, lineterminator=ending).writerows([[image, "class"], [], *rows, ["", ""]])
    (root / "good.csv").write_bytes(text.getvalue().encode(encoding, "surrogatepass"))
    counts = told(root / "good.csv", ClassificationTask())
    classes = [value_of(value) for value in values[: len(names)]]
    if counts is not None:
        assert counts == (sum(map(bool, classes)), classes.count(""))
    elif not any("\n" in each or "\r" in each for each in classes):
        spelled, doubtful = one_spelling(Counter(filter(None, classes)))
        assert doubtful or len(set(spelled.values())) < 2


@SETTINGS
@given(st.binary(max_size=60), st.sampled_from([".csv", ".json", ".tsv"]), st.sampled_from(TASKS))
def test_any_bytes_are_a_list_or_refused(root, content, suffix, task):
    (root / f"bytes{suffix}").write_bytes(content)
    told(root / f"bytes{suffix}", task)
