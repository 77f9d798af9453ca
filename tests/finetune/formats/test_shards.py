"""Straight from shards: the same cases as from the folder that they were built of."""

import numpy as np
import pytest

from scanfoundry.backbones.models.description import ReleaseInfo, SourceRecord
from scanfoundry.backbones.models.release import save_release
from scanfoundry.backbones.registry import build as build_encoder
from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.identity import site_fingerprint, site_key
from scanfoundry.datasets.shards.build import BuildOptions, build
from scanfoundry.finetune.cases.volumes import read_labels
from scanfoundry.finetune.checks.findings import findings
from scanfoundry.finetune.config.study import LabelledData
from scanfoundry.finetune.config.tasks.classification import ClassificationTask
from scanfoundry.finetune.config.tasks.detection import DetectionTask
from scanfoundry.finetune.config.tasks.segmentation import SegmentationTask
from scanfoundry.finetune.formats import discover
from scanfoundry.finetune.run_study import prepare


@pytest.fixture(scope="module")
def site(tmp_path_factory, write_key):
    return write_key(tmp_path_factory.mktemp("key") / "site.key", "shards")


@pytest.fixture(scope="module")
def built(volumes, site, tmp_path_factory):
    out = tmp_path_factory.mktemp("shards")
    options = BuildOptions(masks=[volumes / "labels"], modality="mr", workers=1, key_file=site, boxes_from_masks=True)
    build([volumes / "images"], out / "seg", options)
    return out / "seg"


def test_the_same_cases_as_from_the_folder(volumes, built, site):
    stored = discover(LabelledData(path=str(built), key_file=site), SegmentationTask(classes=["a", "b"]))
    plain = discover(
        LabelledData(images=volumes / "images", labels=volumes / "labels", modality="mr", key_file=site),
        SegmentationTask(classes=["a", "b"]),
    )
    assert stored.modalities == ["mr"]
    assert stored.site == plain.site == site_fingerprint(site_key(site))
    by_key = {case.key[:20]: case for case in plain.cases}
    assert {case.key: case.patient for case in stored.cases} == {key: case.patient for key, case in by_key.items()}
    for case in stored.cases[:4]:
        other = by_key[case.key]
        scan, wanted = case.image.read(), other.image.read()
        assert np.array_equal(scan.voxels, wanted.voxels)
        assert scan.spacing == pytest.approx(wanted.spacing)
        assert scan.orientation == wanted.orientation
        assert np.array_equal(read_labels(case.target, scan), read_labels(other.target, wanted))


def test_patients_of_a_pretraining_on_the_same_shards_are_recognised(study, volumes, built, site, tmp_path):
    data = LabelledData(path=str(built), key_file=site)
    everyone = discover(data, SegmentationTask()).cases
    config = study("segmentation", volumes).model_copy(update={"data": data})
    backbone = config.backbone
    info = ReleaseInfo(
        backbone=backbone,
        sources=(SourceRecord(name="mr", manifest_sha256="0", site=site_fingerprint(site_key(site))),),
    )
    save_release(
        tmp_path / "all", {"encoder": build_encoder(backbone).state_dict()}, info, [case.patient for case in everyone]
    )
    from_release = {"backbone": None, "checkpoint": tmp_path / "all"}
    with pytest.raises(UserError, match=r"test patients were in the pre-training .* data\.holdout"):
        prepare(config.model_copy(update=from_release))
    trained = [case.patient for case in prepare(config).sides.pool]
    save_release(tmp_path / "all", {"encoder": build_encoder(backbone).state_dict()}, info, trained)
    ready = prepare(config.model_copy(update=from_release))
    assert (ready.sides.overlap, ready.sides.pool_overlap) == (0, len(trained))
    assert ready.sides.comparable
    assert ready.spec.classes == ["label 1", "label 2"]


def test_boxes_in_shards(built, site):
    task = DetectionTask()
    cases = discover(LabelledData(path=str(built), key_file=site), task)
    assert cases.classes == ["finding", "label 2"]
    case = cases.cases[0]
    assert {label for _, label in findings(case, case.image.read(), task, cases.classes).listed()} == {0, 1}


def test_classes_in_shards(slices, site, tmp_path):
    options = BuildOptions(labels=[slices / "labels.csv"], modality="us", workers=1, key_file=site)
    build([slices / "images"], tmp_path / "cls", options)
    cases = discover(LabelledData(path=str(tmp_path / "cls"), key_file=site), ClassificationTask())
    assert (len(cases.cases), cases.classes) == (40, ["lesion", "none"])
    with pytest.raises(UserError, match=r"no column 'grade' .there are: class.; set task.label_column"):
        discover(LabelledData(path=str(tmp_path / "cls")), ClassificationTask(label_column="grade"))
    with pytest.raises(UserError, match="has a label for segmentation"):
        discover(LabelledData(path=str(tmp_path / "cls")), SegmentationTask())


def test_mistakes(built, volumes, tmp_path):
    for others, message in (
        ({"modality": "ct"}, "holds no scan of data.modality=ct; there are: mr"),
        ({"labels": volumes / "labels"}, "leave out labels"),
        ({"path": str(volumes / "images"), "format": "shards"}, "not a complete data set"),
    ):
        with pytest.raises(UserError, match=message):
            discover(LabelledData.model_validate({"path": str(built), **others}), SegmentationTask())


def test_a_damaged_shard_is_named(built, tmp_path, site):
    cases = discover(LabelledData(path=str(built), key_file=site), SegmentationTask())
    shard = next(built.glob("*.tar"))
    content = shard.read_bytes()
    damaged = bytearray(content)
    for at in range(600, len(damaged) - 4000, 512):
        damaged[at] ^= 255
    try:
        shard.write_bytes(damaged)
        fresh = discover(LabelledData(path=str(built), key_file=site), SegmentationTask())
        with pytest.raises(UserError, match=r"shard-000000\.tar, scan [0-9a-f]{20}: .*copy or build it again"):
            fresh.cases[0].image.read()
    finally:
        shard.write_bytes(content)
    assert cases.cases[0].image.read().voxels.ndim == 4
