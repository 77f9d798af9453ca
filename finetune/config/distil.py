"""Options of distillation: a trained teacher beside the labels, so that a small network learns from a large one."""

from typing import Literal

from pydantic import Field

from scanfoundry.configs.base import Config


class DistilConfig(Config):
    """Who teaches, what, and how much it counts. The scratch arm learns from labels alone.

    logits: a fine-tuned model of the same task and classes; weight * temperature^2 * KL(teacher, student) of the
    softened probabilities is added to the loss (Hinton et al. 2015, arXiv 1503.02531), for each scan or each voxel.
    features: any released encoder; its deepest features are matched, see `backbones.distillation`.
    """

    teacher: str | None = None  # a finished run folder, a file, or an installed model; None: nobody
    what: Literal["logits", "features"] = "logits"
    weight: float = Field(default=1.0, gt=0)  # beside the task's loss
    temperature: float = Field(default=2.0, gt=0)  # logits: both are divided by it
    compare: bool = False  # also train each recipe without the teacher, as arms of its own
