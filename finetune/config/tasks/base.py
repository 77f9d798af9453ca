"""What every task declares of itself: its options, and which options of a study it reads."""

from collections.abc import Mapping
from typing import ClassVar

from scanfoundry.configs.base import Config
from scanfoundry.configs.errors import UserError
from scanfoundry.finetune.config.loss import LossConfig

NO_LABEL_MAPS = {"validation.postprocess": "only label maps have components to remove"}
NO_PROBABILITIES = {"validation.calibrate": "a {task} has no probabilities of classes to calibrate"}
WHOLE_SCANS = {
    "schedule.foreground": "a {task} sees the whole scan",
    "inference.overlap": "a {task} sees the whole scan, not windows",
}


class TaskConfig(Config):
    """The options of one task; a subclass gives `name` as a literal with itself as the default.

    Attributes:
        loss_options: the options of `LossConfig` that the task reads.
        unread: options of a study that do nothing for the task, with the reason ('{task}' stands for its name).
        self_training: whether scans without a label can take part in the training.
        class_scores: whether the network gives logits (B, K, ...) of K classes, which a teacher's can be compared with.
        mixing: whether the scans of a batch can be mixed, and their classes with them (mixup, cutmix).
        probes: whether there are heads on frozen features (recipes linear_probe, attentive_probe, knn).
        windows: whether scans are brought to the plan's spacing and seen in windows; otherwise each is scaled to fit
            the patch.
        label_files: the usual names of the labels beside a folder of images; the first one that exists is read.
        pipeline_tag: the name that the Hugging Face Hub has for such a task.
    """

    name: str
    loss_options: ClassVar[frozenset[str]] = frozenset()
    unread: ClassVar[Mapping[str, str]] = NO_LABEL_MAPS | NO_PROBABILITIES
    self_training: ClassVar[bool] = False
    class_scores: ClassVar[bool] = False
    mixing: ClassVar[bool] = False
    probes: ClassVar[bool] = False
    windows: ClassVar[bool] = False
    label_files: ClassVar[tuple[str, ...]] = ()
    pipeline_tag: ClassVar[str | None] = None

    def check_loss(self, loss: LossConfig) -> None:
        """Check that the task reads every option of the loss that differs from its default.

        Raises:
            UserError: an option is set that the task does not read.
        """
        default = LossConfig()
        changed = {name for name in type(loss).model_fields if getattr(loss, name) != getattr(default, name)}
        unread = sorted(changed - self.loss_options)
        if unread:
            known = ", ".join(sorted(self.loss_options)) or "none"
            raise UserError(f"loss.{unread[0]} has no meaning for {self.name} (it reads: {known}); leave it out")
