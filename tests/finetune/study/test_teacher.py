"""Studies with a teacher: a large model teaches a small one, and nobody who is tested on."""

import json

import pytest
import torch
from pydantic import ValidationError

from scanfoundry.backbones.models.description import ReleaseInfo
from scanfoundry.backbones.models.release import save_release
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.vit import ViTConfig
from scanfoundry.configs.errors import UserError
from scanfoundry.finetune.model_file import load_model
from scanfoundry.finetune.run_study import prepare, run

pytestmark = pytest.mark.slow  # whole studies

TINY = {"name": "resenc", "features": [8, 12], "blocks": [1, 1], "strides": [[2, 2, 2]]}


@pytest.fixture(scope="module", autouse=True)
def once(tmp_path_factory):
    """A folder for what the tests of this file share."""
    return tmp_path_factory.mktemp("teacher")


def trained(study, data, task, folder, **others):
    """A fine-tuned model in `folder`, made once."""
    if not (folder / "model.json").is_file():
        options = {"shots": [4], "run_dir": folder, "plan": {"batch": 2, "patch": [16, 16, 16]}, **others}
        run(study(task, data, **options))
    return folder


@pytest.fixture
def teacher(study, volumes, once):
    return trained(study, volumes, "segmentation", once / "segmentation")


def taught(study, data, task, teacher, backbone=None, distil=None, **others):
    given = {"backbone": backbone or TINY, "plan": {"batch": 2, "patch": [16, 16, 16]}, "shots": [3]}
    return study(task, data, **given | {"distil": {"teacher": str(teacher)} | (distil or {})} | others)


def test_a_teacher_of_the_same_classes_is_named_wherever_the_student_is(study, volumes, teacher):
    result = run(taught(study, volumes, "segmentation", teacher, distil={"temperature": 3.0, "weight": 0.5}))
    found = json.loads(result.results.read_text())
    assert [row["arm"] for row in found["table"]] == ["scratch_distilled", "scratch"]
    assert [row["arm"] for row in found["paired"]] == ["scratch_distilled"]
    first, second = (cell["histories"][0]["loss"] for cell in found["cells"])
    assert first[0][1] > second[0][1]  # the divergence comes on top; the batch and the weights are the same
    described = json.loads((teacher / "model.json").read_text())
    expected = {"name": "segmentation", "weights_sha256": described["weights_sha256"], "what": "logits",
                "weight": 0.5, "temperature": 3.0}  # fmt: skip
    assert load_model(result.run_dir)[0].spec.trained["teacher"] == expected
    assert found["setup"]["teacher"] == expected
    page = result.report.read_text()
    assert "with a teacher" in page
    assert f"segmentation (sha256 {described['weights_sha256'][:12]}): logits" in page
    assert str(teacher.parent) not in page
    assert not any("the teacher" in note for note in found["warnings"])  # its patients are known, and not tested on


def test_a_teacher_that_has_seen_the_test_patients_is_refused_or_stated(study, volumes, teacher):
    several = taught(study, volumes, "segmentation", teacher, split={"test_fraction": 0.6})
    with pytest.raises(
        UserError, match=r"test patients were in the training of distil\.teacher=.*split\.test_fraction=0\.6"
    ):
        prepare(several)
    allowed = {"test_fraction": 0.6, "allow_pretraining_overlap": True}
    result = run(taught(study, volumes, "segmentation", teacher, split=allowed, shots=[2], compare_scratch=False))
    assert any("the teacher was trained on" in note for note in json.loads(result.results.read_text())["warnings"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ["liver", "tumour"]}, "has classes .* take another teacher"),
        ({"plan": {"batch": 2, "patch": [16, 16, 16], "spacing": [1, 1, 1]}}, r"set plan\.spacing=\["),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(study, volumes, teacher, changes, message):
    config = taught(study, volumes, "segmentation", teacher, **{k: v for k, v in changes.items() if k != "classes"})
    if "classes" in changes:
        task = config.task.model_copy(update={"classes": changes["classes"]})
        config = config.model_copy(update={"task": task})
    with pytest.raises(UserError, match=message):
        prepare(config)


def test_a_teacher_of_another_task_or_none_is_refused(study, slices, teacher):
    with pytest.raises(UserError, match="has task segmentation, this study classification"):
        prepare(taught(study, slices, "classification", teacher, plan={"patch": [1, 16, 16]}))
    with pytest.raises(UserError, match="no file, run folder or installed model"):
        prepare(taught(study, slices, "classification", "nobody", plan={}))


@pytest.fixture
def release(tmp_path):
    """A released encoder of other strides and widths than the student's."""
    config = ViTConfig(size="Ti", patch_2d=(8, 8), patch_3d=(4, 8, 8))
    torch.manual_seed(9)
    save_release(tmp_path / "large", {"encoder": build(config).state_dict()}, ReleaseInfo(backbone=config), ["f" * 32])
    return tmp_path / "large"


@pytest.mark.parametrize("task", ["segmentation", "classification", "detection"])
def test_features_of_any_released_encoder_teach_a_student_and_leave_no_trace(study, volumes, slices, release, task):
    data, patch = (volumes, [16, 16, 16]) if task == "segmentation" else (slices, [1, 48, 48])
    config = taught(study, data, task, release, distil={"what": "features"}, plan={"patch": patch, "batch": 2},
                    compare_scratch=False)  # fmt: skip
    result = run(config)
    _, (model,) = load_model(result.run_dir)
    assert not [name for name in model.state_dict() if "pooled" in name or "match" in name]
    found = json.loads(result.results.read_text())
    assert found["setup"]["teacher"]["what"] == "features"
    assert [row["arm"] for row in found["table"]] == ["scratch_distilled"]
    assert any("none of these patients is among those that the teacher" in n or "not known" in n
               for n in found["warnings"])  # fmt: skip


def test_recipes_with_a_teacher_beside_those_without(study, volumes, teacher, tmp_path):
    from scanfoundry.backbones.resenc import ResEncConfig

    backbone = ResEncConfig.model_validate(TINY)
    save_release(tmp_path / "pre", {"encoder": build(backbone).state_dict()}, ReleaseInfo(backbone=backbone), [])
    options = {"checkpoint": tmp_path / "pre", "recipes": ["full", "warmup"], "distil": {"compare": True}}
    config = study(
        "segmentation", volumes, backbone=None, **options | {"distil": {"teacher": str(teacher), "compare": True}}
    )
    assert [arm.name for arm in config.arms] == ["full_distilled", "warmup_distilled", "full", "warmup", "scratch"]
    assert [arm.distilled for arm in config.arms] == [True, True, False, False, False]
    assert config.arms[1].recipe == "warmup"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distil": {"weight": 2.0}}, r"distil\.teacher is not given"),
        ({"distil": {"teacher": "x", "what": "features", "temperature": 3.0}}, "it softens logits"),
        ({"distil": {"teacher": "x", "compare": True}}, "no teacher anyway"),
        ({"distil": {"teacher": "x"}, "task": {"name": "detection"}}, r"take distil\.what=features"),
    ],
)
def test_options_that_nothing_reads_are_refused(study, slices, changes, message):
    made = study("classification", slices).model_dump()
    with pytest.raises(ValidationError, match=message):
        type(study("classification", slices)).model_validate({**made, **changes})
