"""Lists of cases in the forms that MONAI, Auto3DSeg, spreadsheets and people give them."""

import json

import pytest

from scanfoundry.configs.errors import UserError, UserErrors
from scanfoundry.datasets.identity import keyed_hash, site_key
from scanfoundry.finetune.config.study import LabelledData, SplitConfig
from scanfoundry.finetune.config.tasks.classification import ClassificationTask
from scanfoundry.finetune.config.tasks.regression import RegressionTask
from scanfoundry.finetune.config.tasks.segmentation import SegmentationTask
from scanfoundry.finetune.formats import discover
from scanfoundry.finetune.study.split import split

NAMES = "abcdef"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Files that are only looked for: i/a.nii.gz, j/a.nii.gz (another channel), m/a.nii.gz, ..."""
    folder = tmp_path_factory.mktemp("lists")
    for part in "ijm":
        (folder / part).mkdir()
        for name in NAMES:
            (folder / part / f"{name}.nii.gz").write_bytes(b"")
    return folder


def pair(name, **others):
    return {"image": f"./i/{name}.nii.gz", "label": f"m/{name}.nii.gz"} | others


def pairs(names, **others):
    return [pair(name, **others) for name in names]


def bare(names):
    return [f"i/{name}.nii.gz" for name in names]


def found(root, content, task=None, **others):
    path = root / "list.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return discover(LabelledData(path=str(path), **{"modality": "mr", **others}), task or SegmentationTask())


@pytest.mark.parametrize(
    ("content", "labelled", "out", "sides"),
    [
        ({"training": pairs("abc"), "test": bare("def")}, 3, 3, {"train"}),
        ({"training": pairs("abc"), "testing": pairs("def")}, 6, 0, {"train", "test"}),
        ({"Training": pairs("abc"), "VALIDATION": pairs("d"), "test": []}, 4, 0, {"train", "val"}),
        ({"train": pairs("abc"), "val": pairs("d"), "test": [pair("e"), "i/f.nii.gz"]}, 5, 1, {"train", "val", "test"}),
        ({"training": pairs("ab", fold=0) + pairs("cd", fold=1), "testing": [*bare("e")]}, 4, 1, {"train"}),
        ({"training": [*pairs("abc"), pair("d", label=None), {"image": "i/e.nii.gz"}]}, 3, 2, {"train"}),
        ({"training": pairs("abc"), "name": "x", "numTraining": 3, "reference": ["y"], "test": None}, 3, 0, {"train"}),
        ([*pairs("abc"), *bare("de")], 3, 2, set()),
    ],
)  # fmt: skip
def test_every_case_is_taken_or_counted(root, content, labelled, out, sides):
    cases = found(root, content)
    assert (len(cases.cases), sum(cases.left_out.values())) == (labelled, out)
    assert set(cases.official.values()) == sides


def test_channels_in_lists(root):
    both = [{"image": [f"i/{n}.nii.gz", f"j/{n}.nii.gz"], "label": f"m/{n}.nii.gz"} for n in "abc"]
    both[1]["image"] = [both[1]["image"]]
    cases = found(root, {"training": both, "test": [["i/d.nii.gz", "j/d.nii.gz"]]})
    assert cases.channels == ["channel_0", "channel_1"]
    assert [str(image)[-10:] for image in cases.cases[1].images] == ["i/b.nii.gz", "j/b.nii.gz"]
    assert (len(cases.cases), cases.left_out, len(cases.unlabelled)) == (3, {"images without a label": 1}, 0)
    with pytest.raises(UserError, match="1 lack 'channel_1'"):
        found(root, [*both, pair("e")])
    whole = found(root, [*both, pair("e"), {"image": ["i/f.nii.gz", None], "label": "m/f.nii.gz"}], allow_missing=True)
    assert [case.images[1] is None for case in whole.cases] == [False, False, False, True, True]


def test_what_monai_says_of_labels_and_modality(root):
    content = {"labels": {"0": "background", "1": "liver"}, "modality": {"0": "CT"}, "training": pairs("ab")}
    cases = found(root, content, modality=None)
    assert (cases.classes, cases.modalities) == (["liver"], ["ct"])


def test_paths_relative_to_another_folder(root, tmp_path):
    (tmp_path / "list.json").write_text(json.dumps({"training": pairs("abc")}))
    with pytest.raises(UserError, match=r"none of its 3 images exists, .* data\.images=FOLDER data\.labels="):
        discover(LabelledData(path=str(tmp_path / "list.json"), modality="mr"), SegmentationTask())
    data = LabelledData(images=root, labels=tmp_path / "list.json", modality="mr")
    cases = discover(data, SegmentationTask())
    assert {case.key for case in cases.cases} == {keyed_hash(site_key(), "scan", f"i/{n}.nii.gz") for n in "abc"}
    (tmp_path / "list.csv").write_text("image,label\ni/a.nii.gz,m/a.nii.gz\n")
    data = LabelledData(images=root, labels=tmp_path / "list.csv", modality="mr", format="list")
    assert len(discover(data, SegmentationTask()).cases) == 1


def test_a_list_as_its_own_split(root):
    content = {"training": pairs("ab", fold=0) + pairs("cd", fold=1), "testing": pairs("e")}
    cases = found(root, content)
    assert "'fold' is not used" in " ".join(cases.warnings)
    sides = split(cases, SplitConfig(file=root / "list.json", fold=1), [])
    assert [[cases.names[case.key][2] for case in side] for side in (sides.pool, sides.test)] == [
        ["a", "b"],
        ["c", "d"],
    ]
    with pytest.raises(UserError, match=r"split.fold=2 is none of its folds \[0, 1\]"):
        split(cases, SplitConfig(file=root / "list.json", fold=2), [])
    cases = found(root, {"training": pairs("ab"), "testing": pairs("cd")})
    assert len(split(cases, SplitConfig(file=root / "list.json"), []).test) == 2
    cases = found(root, {"training": pairs("ab"), "test": bare("cd")})
    with pytest.raises(UserError, match="names no test cases with a label"):
        split(cases, SplitConfig(official=True), [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"training": pairs("ab"), "holdout": pairs("c")}, "'holdout' is none of training, validation and test"),
        ({"trainin": pairs("ab")}, "'trainin' is none of"),
        ({"training": pairs("ab"), "extra": bare("c")}, "'extra' is none of"),
        ({"training": {"a": pair("a")}}, "'training' is a mapping"),
        ({"image": "i/a.nii.gz"}, "is no list of cases"),
        ({"training": [["i/a.nii.gz", "m/a.nii.gz"], *pairs("b")]}, "entry 1 of 'training' is a list of 2"),
        ({"training": [*pairs("a"), 3]}, "entry 2 of 'training' is 3"),
        ([{"image": {"t1": "i/a.nii.gz"}, "label": "x"}], "entry 1: 'image' is a mapping"),
        ([{"image": 5, "label": "x"}], "entry 1: 'image' is 5"),
        ([*pairs("ab"), pair("a")], r"names 'i/a.nii.gz' twice \(entry 1 and entry 3\)"),
        ([pair("a"), pair("a", image="i/../i/a.nii.gz")], "names 'i/a.nii.gz' twice"),
        ({"training": pairs("ab"), "testing": pairs("b")}, "twice .entry 2 of 'training' and entry 1 of 'testing'"),
        ([pair("a", label=["m/a.nii.gz", "m/b.nii.gz"])], "names 2 masks"),
        ('{"training": [], "training": []}', "the key 'training' stands twice"),
        ("{'training': []}", "cannot read .*double quotes"),
        ('{"training": [],}', "cannot read"),
        ({"training": [], "test": []}, "lists no case"),
        ({"images": [{"id": 1}], "annotations": []}, "COCO's list of boxes: give data.images"),
        ([pair("a", patient=1), pair("b", patient="01")], "'patient' is the same number, written in two ways"),
        ([pair("a"), pair("b", label=f"m/{'x' * 300}")], "does not exist"),
        ([pair("a"), pair("b", label="m/\0")], "does not exist"),
    ],
)  # fmt: skip
def test_what_is_no_list_or_no_case_is_named(root, content, message):
    with pytest.raises(UserError, match=message):
        found(root, content)


def test_all_mistakes_of_a_list_at_once(root):
    content = [
        pair("a"),
        pair("b", label="m/q.nii.gz"),
        pair("c", image="i/q.nii.gz"),
        pair("a"),
        {"label": "m/a.nii.gz"},
    ]
    with pytest.raises(UserErrors) as caught:
        found(root, content)
    assert sorted(line.partition("list.json: ")[2].split(" ")[0] for line in caught.value.mistakes) == [
        "",
        "case",
        "entry",
        "entry",
    ]


def test_sides_and_patients_of_a_csv(root):
    lines = ["Image;Label;Patient;Split", "i/a.nii.gz;m/a.nii.gz;0;Training", "i/b.nii.gz;m/b.nii.gz;;testing"]
    lines += ["i/c.nii.gz;m/c.nii.gz;7;holdout", "", ";;;"]
    (root / "list.csv").write_bytes("\r\n".join(lines).encode("utf-16"))
    cases = discover(LabelledData(path=str(root / "list.csv"), modality="mr"), SegmentationTask())
    assert list(cases.official.values()) == ["train", "test"]
    assert cases.cases[0].patient == keyed_hash(site_key(), "patient", "0")
    said = " ".join(cases.warnings)
    assert "'split' says 'holdout' (1 cases)" in said
    assert "1 cases of the list have a blank 'Patient'" in said


def classes(root, *cells, **task):
    rows = [{"image": f"i/{name}.nii.gz", "class": cell} for name, cell in zip(NAMES, cells, strict=False)]
    return found(root, rows, ClassificationTask(**task))


def targets(cases):
    return [case.target for case in cases.cases], cases.classes


def test_one_number_is_one_class_and_it_is_said(root):
    cases = classes(root, "1", "1.0", 2, 2.0, None)
    assert targets(cases) == ([0, 0, 1, 1], ["1", "2"])
    assert any("'1.0' is taken as the class '1', the same number" in warning for warning in cases.warnings)
    assert targets(classes(root, "1.0", "2.0")) == ([0, 1], ["1.0", "2.0"])
    assert targets(classes(root, True, False)) == ([1, 0], ["False", "True"])


@pytest.mark.parametrize(
    ("cells", "one", "several"),
    [
        (["b", "B", "a", "b "], "[a, b]", "[B, a, b]"),
        (["1", "01", "2", "1"], "[1, 2]", '["01", 1, 2]'),
        (["no finding", "No_Finding", "mass", "mass"], "[mass, no finding]", "[No_Finding, mass, no finding]"),
        (["no", "No", "yes", "no"], '["no", "yes"]', '["No", "no", "yes"]'),
    ],
)  # fmt: skip
def test_two_spellings_are_asked_about_and_either_answer_works(root, cells, one, several):
    with pytest.raises(UserError) as caught:
        classes(root, *cells)
    assert f"task.classes={one} takes them as one class, task.classes={several} as several" in str(caught.value)
    for answer, count in ((one, 2), (several, 3)):
        named = [name.strip(' "') for name in answer.strip("[]").split(",")]
        cases = classes(root, *cells, classes=named)
        assert len({case.target for case in cases.cases}) == count
        assert len(cases.cases) == 4


def test_values_that_are_no_classes(root):
    with pytest.raises(UserError, match=r"holds '-1' beside '0' \(1 scans\).*task.classes=\[-1, 0, 1\]"):
        classes(root, -1, 0, 1)
    assert targets(classes(root, -1, 1)) == ([0, 1], ["-1", "1"])
    with pytest.raises(UserErrors, match=r"(?s)class 'c' is not among task.classes .*2 scans, first 'i/c.*class 'd'"):
        classes(root, "a", "b", "c", "d", "c", classes=["a", "b"])
    with pytest.raises(UserError, match="'class' is a list of 2: one value is needed"):
        classes(root, "a", ["b", "c"])
    with pytest.raises(UserError, match=r"has no column 'kind'; it has: class, image; set task\.label_column"):
        classes(root, "a", "b", label_column="kind")


def test_numbers_of_a_regression(root):
    rows = [
        {"image": f"i/{name}.nii.gz", "value": cell} for name, cell in zip(NAMES, (1, 2.5, "3e1", None), strict=False)
    ]
    assert [case.target for case in found(root, rows, RegressionTask()).cases] == [1.0, 2.5, 30.0]
    rows = [
        {"image": f"i/{name}.nii.gz", "value": cell} for name, cell in zip(NAMES, ("61,5", True, "1_0"), strict=False)
    ]
    with pytest.raises(
        UserErrors, match=r"(?s)3 mistakes.*'61,5' .* is no number; write it with a point.*'True'.*'1_0'"
    ):
        found(root, rows, RegressionTask())
