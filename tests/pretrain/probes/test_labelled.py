"""Which scans a probe takes: by patient, never on both sides; and what it says where it cannot be run."""

import shutil
from pathlib import Path

import pytest

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.loading import check
from scanfoundry.datasets.identity import fraction
from scanfoundry.datasets.shards.build import BuildOptions, build
from scanfoundry.datasets.shards.reader import DataSet
from scanfoundry.pretrain.config.probes import ProbeDataConfig
from scanfoundry.pretrain.probes.labelled import choose


def data_config(path: Path, **changes) -> ProbeDataConfig:
    return check(ProbeDataConfig, {"path": str(path), "crop": [16, 16]} | changes, "test")


def chosen(path: Path, masks: bool = False, target: str | None = None, holdout: float = 0.0, **changes):
    return choose(DataSet(path), data_config(path, **changes), holdout, masks, target)


def test_no_patient_is_on_both_sides_and_the_rule_is_that_of_the_holdout(labelled_shards):
    for holdout, given, share in ((0.0, None, 0.3), (0.4, None, 0.4), (0.4, 0.5, 0.5)):
        found = chosen(labelled_shards["images"], target="kind", holdout=holdout, test_fraction=given)
        train, test = set(found.patients(test=False)), set(found.patients(test=True))
        assert train
        assert test
        assert not train & test
        assert all(fraction(patient) < share for patient in test)
        assert all(fraction(patient) >= share for patient in train)
        assert len(found.scans) == 40
        assert found.classes == ["coarse", "fine"]
        assert [scan.label for scan in found.scans] == [
            found.classes.index(scan.entry.labels.classes["kind"]) for scan in found.scans
        ]


def test_few_scans_are_the_first_of_the_many_and_of_whole_patients(labelled_shards):
    every = [scan.entry.key for scan in chosen(labelled_shards["images"], target="kind").scans]
    few = chosen(labelled_shards["images"], target="kind", scans=20)
    assert [scan.entry.key for scan in few.scans] == every[:20]
    assert len({scan.entry.patient for scan in few.scans}) == 10
    assert few.patients(test=True)


def test_masks_are_asked_for_or_classes(labelled_shards):
    found = chosen(labelled_shards["volumes"], masks=True, crop=[8, 16, 16])
    assert len(found.scans) == 16
    assert found.classes == []
    assert {scan.label for scan in found.scans} == {-1}


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("images", {}, "several classes (kind, side); set `target`"),
        ("images", {"target": "age"}, "no scan of .* has a class 'age'; there are kind, side"),
        ("images", {"masks": True}, "has a mask; build it with `scanfoundry data build --masks`"),
        ("images", {"target": "kind", "crop": [8, 16, 16]}, "no volume for a crop of three numbers"),
        ("images", {"target": "kind", "scans": 1}, "of one patient"),
        ("images", {"target": "kind", "test_fraction": 1e-9}, "20 training and 0 test patients"),
        ("images", {"target": "kind", "scans": 4, "test_fraction": 0.999}, "0 training and 2 test patients"),
        ("volumes", {"crop": [8, 16, 16]}, "all of one class .'same'"),
    ],
)
def test_what_cannot_be_probed_is_said(labelled_shards, name, changes, said):
    with pytest.raises(UserError, match=said.replace("(kind, side)", ".kind, side.")):
        chosen(labelled_shards[name], **changes)


def test_classes_that_are_too_rare_are_left_out_and_too_few_classes_refused(tmp_path, labelled_shards):
    source = labelled_shards["images"].parent.parent
    shutil.copytree(source / "images", tmp_path / "images")
    rows = [line.split(",")[0] for line in (source / "images.csv").read_text().splitlines()[1:]]
    key = source / "site.key"

    def built(name, classes):
        (tmp_path / f"{name}.csv").write_text(
            "\n".join(["id,kind", *(f"{row},{c}" for row, c in zip(rows, classes, strict=True))])
        )
        options = BuildOptions(
            workers=1,
            key_file=key,
            labels=[tmp_path / f"{name}.csv"],
            label_columns=["kind"],
            patient_regex=r"(p\d\d)_",
            modality="us",
        )
        build([tmp_path / "images"], tmp_path / name, options, None)
        return tmp_path / name

    one = built("one", ["a", "b"] * 19 + ["rare", "b"])
    found = chosen(one)
    assert found.classes == ["a", "b"]
    assert len(found.scans) == 39
    with pytest.raises(UserError, match=r"too few labelled scans.*'a' .*'rare' (1 and 0|0 and 1)"):
        chosen(built("two", ["a"] * 39 + ["rare"]))


def test_labels_of_nothing_are_missed(tiny_shards):
    with pytest.raises(UserError, match="has a class; build it with `scanfoundry data build --labels`"):
        chosen(tiny_shards["us"])
