"""Saved models with random weights."""

import numpy as np
import pytest
import torch

from scanfoundry.backbones.registry import build
from scanfoundry.backbones.resenc import ResEncConfig
from scanfoundry.datasets.intensity import IntensityConfig
from scanfoundry.finetune.boxes.anchors import plan_strides
from scanfoundry.finetune.config.detection import DetectionPlan
from scanfoundry.finetune.config.study import InferenceConfig
from scanfoundry.finetune.config.tasks.classification import ClassificationTask
from scanfoundry.finetune.config.tasks.detection import DetectionTask
from scanfoundry.finetune.config.tasks.segmentation import SegmentationTask
from scanfoundry.finetune.heads.pyramid import available_strides
from scanfoundry.finetune.model_file import adapter_for, save_model
from scanfoundry.finetune.plan import Fingerprint, Plan
from scanfoundry.finetune.spec import Spec

BACKBONE = ResEncConfig(features=(8, 16, 32), blocks=(1, 1, 1), strides=((2, 2, 2),) * 2)
TASKS = {
    "segmentation": (SegmentationTask(), ["one", "two"]),
    "classification": (ClassificationTask(), ["lesion", "none"]),
    "detection": (DetectionTask(score_threshold=0.0, boxes_per_scan=3), ["finding"]),
}


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Folder of a saved model with random weights of a task, of volumes or of images."""
    made = {}

    def get(task, flat=False, channels=("image",), modality="mr", profiles=()):
        key = (task, flat, channels, modality, tuple(each.model_dump_json() for each in profiles))
        if key not in made:
            patch = (1, 16, 16) if flat else (16, 16, 16)
            found = Fingerprint(scans=1, shape=patch, spacing=(1, 1, 1), is_2d=flat)
            spacing = (1, 1, 1) if flat else (2, 1.5, 1.5)
            with torch.device("meta"):
                strides = plan_strides(
                    np.full((1, 2 if flat else 3), 4.0), available_strides(build(BACKBONE), flat), patch
                )
            planned = DetectionPlan(whole_scan=True, reason="test", strides=strides, boxes=1, anchor_iou=1.0)
            backbone = BACKBONE.model_copy(update={"in_channels": len(channels)})
            spec = Spec(
                channels=list(channels),
                task=TASKS[task][0], classes=TASKS[task][1], modality=modality, backbone=backbone,
                profiles=list(profiles),
                intensity=IntensityConfig(), inference=InferenceConfig(),
                plan=Plan(spacing=spacing, patch=patch, batch=2, fingerprint=found),
                anchors=[[[4.0] * (2 if flat else 3)] * 3] * len(strides) if task == "detection" else None,
                detection=planned if task == "detection" else None,
            )  # fmt: skip
            torch.manual_seed(4)
            made[key] = tmp_path_factory.mktemp("models") / f"{task}-{flat}"
            save_model(made[key], [adapter_for(spec).build(build(backbone))], spec)
        return made[key]

    return get
