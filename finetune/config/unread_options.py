"""Options that would be read by nobody: they are refused, since whoever sets one believes that it does something."""

from typing import Any

from pydantic import BaseModel

Study = Any  # a `FinetuneConfig`, whose module imports this one

LORA = {"lora.rank", "lora.alpha", "lora.dropout"}
PROBE = {"probe.views", "probe.neighbours", "probe.temperature", "probe.steps", "probe.heads"}
OF_PROBE = {  # option: the recipes that read it
    "probe.views": {"linear_probe", "attentive_probe"},
    "probe.neighbours": {"knn"},
    "probe.temperature": {"knn"},
    "probe.steps": {"attentive_probe"},
    "probe.heads": {"attentive_probe"},
}
LOOKS = ("validation.checks", "validation.patience", "validation.postprocess", "validation.calibrate")


def check_no_unread_options(config: Study) -> None:
    """ValueError, for the configuration to refuse, where an option differs from its default and nobody reads it."""
    changed = set(_changed(config))
    for key, reason in _idle(config):
        if key in changed:
            raise ValueError(f"{key} does nothing here: {reason}; leave it out")


def _idle(config: Study) -> list[tuple[str, str]]:
    recipes = set(config.recipes)
    found = [(key, "it is for recipe 'lora'") for key in sorted(LORA) if "lora" not in recipes]
    found += [(key, f"it is for recipe {' and '.join(sorted(OF_PROBE[key]))}") for key in sorted(PROBE)
              if not OF_PROBE[key] & recipes]  # fmt: skip
    if not config.validation.any:
        found += [(key, "no cases are held back (validation.folds or validation.fraction)") for key in LOOKS]
    found += [(key, reason.format(task=config.task.name)) for key, reason in config.task.unread.items()]
    if not config.augmentation.flip_axes:
        found.append(("inference.mirror", "augmentation.flip_axes names no axis to mirror along"))
    if config.checkpoint is None:
        found.append(("schedule.encoder_lr_scale", "training from scratch always takes 1"))
        found.append(("transfer", "there is no checkpoint to take parts of"))
        found.append(("checkpoint_classes", "there is no checkpoint"))
    if not config.self_training.rounds:
        found += [(f"self_training.{name}", "self_training.rounds is 0") for name in ("start", "min_steps", "share",
                                                                                       "scans")]  # fmt: skip
    if config.split.file is not None or config.split.official:
        given = "split.file" if config.split.file is not None else "split.official"
        found.append(("split.test_fraction", f"{given} says who is tested on"))
    if config.split.file is None:
        found.append(("split.fold", "it is a fold of split.file"))
    return found


def _changed(config: BaseModel, before: str = "") -> list[str]:
    """Keys, down to those of sections, whose values are not the defaults."""
    found = []
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            found += _changed(value, f"{before}{name}.")
        elif not field.is_required() and value != _default(field):
            found.append(f"{before}{name}")
    return found


def _default(field: Any) -> Any:
    return field.get_default(call_default_factory=True)
