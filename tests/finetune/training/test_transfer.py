"""Decoder and head of another model: what fits is taken, by the names of the classes, and all of it is told."""

import pytest
import torch

from scanfoundry.backbones.mednext import MedNeXtConfig
from scanfoundry.backbones.models.description import HeadInfo
from scanfoundry.backbones.models.parts import from_file, joined, split, to_file
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.resenc import ResEncConfig
from scanfoundry.backbones.stunet import STUNetConfig
from scanfoundry.backbones.vit import ViTConfig
from scanfoundry.datasets.intensity import IntensityConfig
from scanfoundry.finetune.config.study import InferenceConfig
from scanfoundry.finetune.config.tasks.classification import ClassificationTask
from scanfoundry.finetune.config.tasks.segmentation import SegmentationTask
from scanfoundry.finetune.model_file import adapter_for
from scanfoundry.finetune.plan import Fingerprint, Plan
from scanfoundry.finetune.spec import Spec
from scanfoundry.finetune.training.transfer import StartWeights, transfer

STRIDES = ((2, 2, 2),) * 2
BACKBONES = {
    "stunet": STUNetConfig(size="S", strides=((2, 2, 2), (1, 2, 2), (1, 1, 2), (1, 1, 1), (1, 1, 1))),
    "mednext": MedNeXtConfig(size="S"),
    "resenc": ResEncConfig(features=(8, 12, 16), blocks=(1, 1, 1), strides=STRIDES),
    "vit": ViTConfig(size="Ti"),
}


def spec_of(task, classes, backbone):
    patch = (16, 32, 32)
    found = Fingerprint(scans=1, shape=patch, spacing=(1, 1, 1), is_2d=False)
    return Spec(
        task=task, classes=classes, modality="mr", backbone=backbone, intensity=IntensityConfig(),
        inference=InferenceConfig(), plan=Plan(spacing=(1, 1, 1), patch=patch, batch=2, fingerprint=found),
    )  # fmt: skip


def network(backbone, classes, task=SegmentationTask, seed=0):
    torch.manual_seed(seed)
    adapter = adapter_for(spec_of(task(), classes, backbone))
    return adapter, adapter.build(build(backbone))


def start_of(adapter, model):
    """What a file of the model gives."""
    parts = from_file(to_file(split(model, model.state_dict())))
    parts = {part: {name: value.clone() for name, value in weights.items()} for part, weights in parts.items()}
    return StartWeights(parts, HeadInfo(task=adapter.spec.task.name, classes=adapter.spec.classes))


@pytest.mark.parametrize("name", BACKBONES)
def test_the_whole_model_is_the_same_network_again(name):
    adapter, model = network(BACKBONES[name], ["liver", "tumour"])
    other_adapter, other = network(BACKBONES[name], ["liver", "tumour"], seed=1)
    start = start_of(adapter, model)
    encoder = {n: v for n, v in other.state_dict().items() if other.part_of(n)[0] == "encoder"}
    other.load_state_dict(joined(other, encoder, start.parts), strict=False)  # as `study.ensemble` does before
    done = transfer(other_adapter, other, start)
    assert done.used.keys() == {"encoder", "decoder", "head"}
    assert not done.adapted
    assert not done.left
    assert done.names == other.state_dict().keys()
    for key, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key
    assert done.lines()[2] == "head used: its classes liver, tumour"


@pytest.mark.parametrize("name", BACKBONES)
def test_classes_of_the_same_name_keep_their_weights(name):
    adapter, model = network(BACKBONES[name], ["liver", "tumour", "spleen"])
    other_adapter, other = network(BACKBONES[name], ["kidney", "spleen", "liver"], seed=1)
    fresh = {key: value.clone() for key, value in other.state_dict().items()}
    done = transfer(other_adapter, other, start_of(adapter, model))
    assert done.adapted["head"] == "kept spleen, liver; fresh kidney"
    rows = {0: 0, 2: 3, 3: 1}  # background, spleen, liver
    looked_at = 0
    for key, value in other.state_dict().items():
        if other.part_of(key)[0] != "head":
            continue
        axis = other.class_axis(key)
        for row in range(4):
            given = model.state_dict()[key].select(axis, rows[row]) if row in rows else fresh[key].select(axis, row)
            assert torch.equal(value.select(axis, row), given), (key, row)
            looked_at += 1
    assert looked_at >= 8


def test_what_does_not_fit_is_left_and_told():
    adapter, model = network(BACKBONES["resenc"], ["liver"])
    start = start_of(adapter, model)
    other_adapter, other = network(BACKBONES["resenc"], ["heart"], seed=1)
    before = {key: value.clone() for key, value in other.state_dict().items()}
    done = transfer(other_adapter, other, start)
    assert done.left["head"] == "it has no class of this task"
    assert "decoder" in done.used
    heads = [key for key in before if other.part_of(key)[0] == "head"]
    assert heads
    assert all(torch.equal(before[key], other.state_dict()[key]) for key in heads)
    classifier, plain = network(BACKBONES["resenc"], ["liver", "none"], ClassificationTask)
    done = transfer(classifier, plain, start)
    assert done.left == {"decoder": "this task's network has none", "head": "it is of segmentation"}
    wide_adapter, wide = network(BACKBONES["stunet"], ["liver"])
    done = transfer(wide_adapter, wide, start)
    assert "it is of another kind" in done.left["decoder"]
    assert done.left["head"] == "its layers are others"


def test_classification_keeps_the_rows_of_its_classes():
    adapter, model = network(BACKBONES["resenc"], ["benign", "malignant", "normal"], ClassificationTask)
    with torch.no_grad():
        model.linear.weight.normal_()
    other_adapter, other = network(BACKBONES["resenc"], ["normal", "malignant"], ClassificationTask, seed=1)
    done = transfer(other_adapter, other, start_of(adapter, model))
    assert torch.equal(other.linear.weight, model.linear.weight[[2, 1]])
    assert done.adapted["head"] == "kept normal, malignant"
