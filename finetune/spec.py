"""All that a fine-tuned model is, apart from its weights."""

from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from scanfoundry.backbones.registry import BackboneConfig
from scanfoundry.configs.base import Config
from scanfoundry.datasets.intensity import IntensityConfig
from scanfoundry.finetune.cases.appearance import Profile
from scanfoundry.finetune.cases.label_values import LabelValues, consecutive
from scanfoundry.finetune.cases.volumes import Grey
from scanfoundry.finetune.config.detection import DetectionPlan
from scanfoundry.finetune.config.loss import LossConfig
from scanfoundry.finetune.config.postprocess import ClassRule
from scanfoundry.finetune.config.recipes import Head, ProbeConfig
from scanfoundry.finetune.config.study import InferenceConfig
from scanfoundry.finetune.config.tasks.registry import Task
from scanfoundry.finetune.plan import Plan


class Standard(Config):
    """Mean and standard deviation of the training cases' values; what the network says is in these terms."""

    mean: float
    std: float = Field(gt=0)


class Spec(Config):
    """All that a fine-tuned model is, apart from its weights; the body of its `model.json`."""

    model_config = ConfigDict(defer_build=True)  # until what plug-ins add can be imported, see `ByName`
    format_version: Literal[1, 2] = 2  # of 1 the weights have no parts
    kind: Literal["finetuned"] = "finetuned"
    task: Task
    classes: list[str]
    values: LabelValues | None = None  # of label maps and of predictions; None: the classes are 1..n
    channels: list[str] = ["image"]  # names of the input channels, in order
    grey: Grey = "mean"  # of colours, for a network of one channel; earlier versions took the mean
    modality: str  # of the first channel, and of all unless `modalities` says more
    modalities: list[str] = []  # of each channel, where they differ
    profiles: list[Profile] = []  # of each channel: how the training scans look
    intensity: IntensityConfig
    backbone: BackboneConfig
    plan: Plan
    inference: InferenceConfig
    flip_axes: list[int] = []
    loss: LossConfig = LossConfig()
    class_weights: list[float] | None = None  # of the loss, from the training cases; None: all equal
    temperature: float = Field(default=1.0, gt=0)  # of class probabilities, see `calibration.py`
    standard: Standard | None = None  # regression: of the training cases
    anchors: list[list[list[float]]] | None = None  # detection: sizes by level, from the training boxes
    detection: DetectionPlan | None = None  # what else is planned from them
    head: Head = "plain"  # classification: what stands on the features
    probe: ProbeConfig = ProbeConfig()  # of an attentive or a nearest-neighbour head
    members: int = 1  # models that predict together
    postprocess: list[ClassRule] = []  # segmentation: by class, from the held-back cases
    trained: dict[str, Any] = Field(default_factory=dict)  # arm, shots, seed, steps

    @model_validator(mode="before")
    @classmethod
    def _of_earlier_versions(cls, value: Any) -> Any:
        """Without the option that models of earlier versions carry and that has gone, where it had its only value."""
        if (
            isinstance(value, dict)
            and isinstance(value.get("loss"), dict)
            and value["loss"].get("dice_over") == "batch"
        ):
            return value | {"loss": {name: each for name, each in value["loss"].items() if name != "dice_over"}}
        return value

    @property
    def labels(self) -> LabelValues:
        """`values`, or that the classes are 1..n."""
        return self.values or consecutive(len(self.classes))
