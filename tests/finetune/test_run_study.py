"""Whole studies on tiny data: three tasks, both arms, stop and restart, no identity in what is written."""

import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from scanfoundry.backbones.models.description import ReleaseInfo, SourceRecord
from scanfoundry.backbones.models.release import save_release
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.stunet import STUNetConfig
from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.identity import site_fingerprint, site_key
from scanfoundry.finetune.config.study import LabelledData
from scanfoundry.finetune.config.tasks.segmentation import SegmentationTask
from scanfoundry.finetune.formats import discover
from scanfoundry.finetune.model_file import load_model
from scanfoundry.finetune.predict.prediction import predict
from scanfoundry.finetune.run_study import prepare, run
from scanfoundry.finetune.study.run_trial import run_trial
from scanfoundry.finetune.study.split import trial_cases
from scanfoundry.finetune.study.trial import digest_of_trial


@pytest.fixture
def checkpoint(tmp_path, volumes):
    config = STUNetConfig(size="S", strides=((2, 2, 2),) * 2 + ((1, 1, 1),) * 3)
    torch.manual_seed(9)
    save_release(tmp_path / "pre", {"encoder": build(config).state_dict()}, ReleaseInfo(backbone=config), [])
    return tmp_path / "pre"


def test_segmentation_from_checkpoint_and_scratch(study, volumes, checkpoint, monkeypatch):
    config = study(
        "segmentation", volumes, backbone=None, checkpoint=checkpoint, shots=[2, 3], augmentation={"flip_axes": [2]}
    )
    result = run(config)
    found = json.loads(result.results.read_text())
    assert [(row["arm"], row["shots"]) for row in found["table"]] == [
        ("full", 2), ("scratch", 2), ("full", 3), ("scratch", 3)
    ]  # fmt: skip
    by_arm = {(cell["arm"], cell["shots"]): cell for cell in found["cells"]}
    assert any("another site key" in warning for warning in found["warnings"])
    first, second = by_arm["full", 3], by_arm["scratch", 3]
    assert first["train_cases"] == second["train_cases"]
    assert set(by_arm["full", 2]["train_cases"]) < set(first["train_cases"])
    assert [r["case"] for r in first["records"]] == [r["case"] for r in second["records"]]
    mean = np.mean([r["score"] for r in first["records"]]) - np.mean([r["score"] for r in second["records"]])
    assert found["paired"][1]["metrics"]["dice"]["value"] == pytest.approx(mean)

    html = re.sub(r"base64,[A-Za-z0-9+/=]+", "", result.report.read_text())
    for text in (html, result.results.read_text(), (result.run_dir / "plan.json").read_text()):
        assert not re.search(r"Doe|images/|\.nii|/tmp", text)
    assert not re.search(r"(src|href)=\"(?!data:|#)", html)

    # A second start trains nothing and gives the same numbers; an edited plan trains again.
    monkeypatch.setattr("scanfoundry.finetune.study.ensemble.train", lambda *a, **k: pytest.fail("trained again"))
    run(config)
    assert json.loads(result.results.read_text()) == found
    plan = json.loads((result.run_dir / "plan.json").read_text())
    (result.run_dir / "plan.json").write_text(json.dumps(plan | {"patch": [16, 16, 16]}))
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        run(config)


@pytest.mark.parametrize("same_key", [True, False])
def test_whether_the_overlap_could_be_checked_is_said(study, volumes, tmp_path, same_key):
    config = STUNetConfig(size="S", strides=((2, 2, 2),) * 2 + ((1, 1, 1),) * 3)
    site = site_fingerprint(site_key() if same_key else b"x" * 32)
    info = ReleaseInfo(backbone=config, sources=(SourceRecord(name="mr", manifest_sha256="0", site=site),))
    save_release(tmp_path / "pre", {"encoder": build(config).state_dict()}, info, ["0" * 32])
    sides = prepare(study("segmentation", volumes, backbone=None, checkpoint=tmp_path / "pre")).sides
    assert sides.comparable == same_key
    assert sides.overlap == 0


def test_who_corrects_a_label_gets_new_numbers_where_it_matters(study, volumes, tmp_path, monkeypatch):
    data = tmp_path / "data"
    shutil.copytree(volumes, data)
    config = study("segmentation", data, shots=[1, 3])
    config = config.model_copy(update={"task": SegmentationTask(classes=["one", "two"])})
    before = json.loads(run(config).results.read_text())["cells"]
    settled = prepare(config)
    few, more = (trial_cases(settled.sides, k, 0, config.self_training).train for k in (1, 3))
    changed = next(case for case in more if case not in few)
    path = (
        data
        / "labels"
        / f"{settled.found.names[changed.key].split('/')[-1].split('.')[0].removesuffix('_0000')}.nii.gz"
    )
    labels = nib.load(path)
    voxels = np.asarray(labels.dataobj).copy()
    voxels[:2] = 1
    nib.save(nib.Nifti1Image(voxels, labels.affine), path)
    trained = []
    monkeypatch.setattr(
        "scanfoundry.finetune.study.runner.run_trial",
        lambda c, s, name, *a: trained.append(name.shots) or run_trial(c, s, name, *a),
    )
    after = json.loads(run(config).results.read_text())["cells"]
    assert trained == [3]
    assert before[0] == after[0]
    assert before[1]["digest"] != after[1]["digest"]


def test_the_same_command_gives_the_same_numbers(study, volumes, tmp_path):
    runs = [run(study("segmentation", volumes, run_dir=tmp_path / name)) for name in ("a", "b")]
    first, second = (json.loads(r.results.read_text()) for r in runs)
    assert [r["score"] for r in first["cells"][0]["records"]] == [r["score"] for r in second["cells"][0]["records"]]
    weights = [(r.run_dir / "model.safetensors").read_bytes() for r in runs]
    assert weights[0] == weights[1]

    source = volumes / "images" / "Doe_04_0000.nii.gz"
    written = predict(runs[0].model, [source], tmp_path / "out")
    image, labels = nib.load(source), nib.load(written[0])
    assert labels.shape == image.shape
    assert labels.get_data_dtype() == np.uint8
    assert np.array_equal(labels.affine, image.affine)
    (runs[1].run_dir / "model.safetensors").write_bytes(weights[0][:-9])
    with pytest.raises(UserError, match="damaged"):
        predict(runs[1].model, [source], tmp_path / "out2")


@pytest.mark.parametrize("task", ["classification", "detection"])
def test_images(study, slices, tmp_path, task):
    extra = {"inference": {"mirror": True}, "augmentation": {"flip_axes": [2]}, "plan": {"batch": 4}}
    result = run(study(task, slices, shots=[8], **extra))
    found = json.loads(result.results.read_text())
    assert found["headline"] == {"classification": "auroc", "detection": "ap@0.1"}[task]
    assert 0 <= found["table"][0]["metrics"][found["headline"]]["value"] <= 1
    assert result.report.read_text().count("<figure") >= 4
    (written,) = predict(result.model, [slices / "images"], tmp_path / "out")
    if task == "classification":
        lines = written.read_text().splitlines()
        assert lines[0] == "file,prediction,lesion,none"
        assert len(lines) == 41
    else:
        rows = json.loads(written.read_text())["scans"]
        assert len(rows) == 40
        boxes = np.array([b["box"] for row in rows for b in row["boxes"]]).reshape(-1, 6)
        assert (boxes[:, 3:] > boxes[:, :3]).all()
        assert (boxes[:, 4:] <= [40, 48]).all()


def test_self_training_reads_no_label_of_the_pool_and_says_what_took_part(study, volumes, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(volumes, data)
    told = {
        "self_training": {"rounds": 1, "start": 0.5, "share": 0.9, "min_steps": 0},
        "schedule": {"steps": 4, "warmup_steps": 1},
    }
    config = study("segmentation", data, **told)
    config = config.model_copy(update={"task": SegmentationTask(classes=["one", "two"])})
    settled = prepare(config)
    cases = trial_cases(settled.sides, 2, 0, config.self_training)
    for case in cases.unlabelled:
        name = settled.found.names[case.key].removesuffix("_0000.nii.gz").removesuffix("_0000")
        (data / "labels" / f"{Path(name).name}.nii.gz").write_bytes(b"nobody reads this")
    result = run(config)
    found = json.loads(result.results.read_text())
    cell = found["cells"][0]
    assert cell["unlabelled_cases"] == len(cases.unlabelled) == len(settled.sides.pool) - 2
    assert cell["histories"][0]["relabelled"] == [2]
    assert any(f"self-training: {len(cases.unlabelled)} scans" in warning for warning in found["warnings"])
    assert "self-training" in result.report.read_text()

    arm, origin = config.arms[0], ""
    before = digest_of_trial(config, settled.spec, arm, cases, settled.checked, origin)
    first = Path(str(cases.unlabelled[0].image))
    voxels = nib.load(first)
    nib.save(nib.Nifti1Image(voxels.get_fdata(dtype=np.float32) + 1, voxels.affine), first)
    assert digest_of_trial(config, settled.spec, arm, cases, prepare(config).checked, origin) != before
    first.write_bytes(b"no scan")
    with pytest.raises(UserError, match=first.name):  # before anything is trained
        prepare(config)


def test_a_vit_segments_slices(study, slices, tmp_path):
    config = study("detection", slices, backbone={"name": "vit", "size": "Ti", "patch_2d": [8, 8]})
    data = config.data.model_copy(update={"labels": slices / "masks"})
    config = config.model_copy(update={"data": data, "task": SegmentationTask(classes=["lesion"])})
    result = run(config)
    written, table = predict(result.model, [slices / "images" / "s03.png"], tmp_path / "out")
    assert written.name == "s03.png"
    assert table.read_text().startswith("file,output,lesion voxels,lesion ml\ns03.png,s03.png,")


def test_patients_of_the_pretraining_are_refused_or_shouted(study, volumes, tmp_path):
    config = study("segmentation", volumes)
    everyone = [case.patient for case in discover(config.data, config.task).cases]
    backbone = config.backbone
    save_release(tmp_path / "pre", {"encoder": build(backbone).state_dict()}, ReleaseInfo(backbone=backbone), everyone)
    changed = {"backbone": None, "checkpoint": tmp_path / "pre", "compare_scratch": False}
    with pytest.raises(UserError, match=r"data\.holdout"):
        run(config.model_copy(update=changed))
    loud = config.split.model_copy(update={"allow_pretraining_overlap": True})
    result = run(config.model_copy(update={**changed, "split": loud}))
    assert json.loads(result.results.read_text())["data"]["test_patients_pretrained_on"] > 0
    assert "were in the pre-training data" in result.report.read_text()


def test_a_label_without_a_name_is_an_error_that_names_the_file(study, volumes):
    config = study("segmentation", volumes).model_copy(update={"task": SegmentationTask(classes=["only"])})
    with pytest.raises(UserError, match=r"Doe_\d+\.nii\.gz: label 2"):
        run(config)


def test_contrasts_from_a_checkpoint_of_one_channel_with_some_missing(study, volumes, checkpoint, tmp_path):
    for i in range(12):
        folder = tmp_path / "in" / f"Doe_{i:02d}"
        folder.mkdir(parents=True)
        (folder / "t1.nii.gz").symlink_to(volumes / "images" / f"Doe_{i:02d}_0000.nii.gz")
        (folder / "seg.nii.gz").symlink_to(volumes / "labels" / f"Doe_{i:02d}.nii.gz")
        if i % 3:
            image = nib.load(folder / "t1.nii.gz")
            half = nib.Nifti1Image(image.get_fdata(dtype=np.float32)[:, :, ::2], image.affine @ np.diag([1, 1, 2, 1]))
            nib.save(half, folder / "flair.nii.gz")  # on another grid
    data = {"path": str(tmp_path / "in"), "labels": "*/seg.nii.gz", "allow_missing": True}
    channels = {"t1": "*/t1.nii.gz", "flair": "*/flair.nii.gz"}
    config = study(
        "segmentation",
        volumes,
        backbone=None,
        checkpoint=checkpoint,
        shots=["all"],
        augmentation={"channel_dropout": 0.3},
    )
    config = config.model_copy(update={"data": LabelledData.model_validate(data | {"channels": channels})})
    result = run(config)
    spec = json.loads((result.run_dir / "model.json").read_text())
    assert (spec["channels"], spec["modality"], spec["backbone"]["in_channels"]) == (["t1", "flair"], "mr", 2)
    found = json.loads(result.results.read_text())
    assert {row["arm"] for row in found["table"]} == {"full", "scratch"}
    assert all(record["score"] is not None for record in found["cells"][0]["records"])
    adapter, _ = load_model(result.model)
    case = next(case for case in discover(config.data, config.task).cases if case.images[1] is None)
    sample = adapter.load(case)
    assert sample.present.tolist() == [True, False]
    assert (sample.image[1] == sample.fill).all()
    with pytest.raises(UserError, match=r"takes 2 channels \(t1, flair\), 1 are given"):
        adapter.unlabelled(case.image.read())


def test_predict_refuses_what_is_no_model(tmp_path, checkpoint, volumes):
    with pytest.raises(UserError, match="pre-trained encoder"):
        predict(checkpoint, [volumes / "images"], tmp_path / "out")
    with pytest.raises(UserError, match="is missing"):
        predict(tmp_path, [volumes / "images"], tmp_path / "out")


def test_what_is_left_out_is_told_before_anything_is_trained(study, slices, tmp_path, caplog):
    lines = (slices / "labels.csv").read_text().splitlines()
    lines[3:5] = [f"{line.partition(',')[0]}," for line in lines[3:5]]
    (tmp_path / "l.csv").write_text("\n".join([*lines, ",lesion"]))
    data = LabelledData(images=slices / "images", labels=tmp_path / "l.csv", modality="us")
    prepare(study("classification", slices).model_copy(update={"data": data}))
    assert "note: left out: 1 lines without an id; 2 images without a label." in caplog.messages
