"""Options that would be read by nobody: they are refused, since whoever sets one believes that it does something."""

from typing import Any

from pydantic import BaseModel

from scanfoundry.finetune.config.recipes import GENTLE, PROBES

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
OF_RECIPES = {  # key of the schedule: the recipes that read it
    "frozen_steps": ("staged",),
    "warmup_share": ("warmup", "sawtooth"),
    "decoder_share": ("sawtooth",),
    "decoder_lr_scale": ("sawtooth",),
}
OF_PRETRAINED = ("pretrained_lr_scale", "encoder_lr_scale", "layer_decay", "warmup_share", "decoder_share",
                 "decoder_lr_scale")  # fmt: skip
MIXING = ("augmentation.mixup", "augmentation.cutmix")
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
    found += [(f"schedule.{key}", f"it is for recipe {' and '.join(readers)}") for key, readers in OF_RECIPES.items()
              if not recipes & set(readers)]  # fmt: skip
    if not config.task.mixing:
        found += [(key, f"a {config.task.name} has no class of each scan to mix") for key in MIXING]
    elif all(arm.recipe in PROBES for arm in config.arms):
        found += [(key, "a probe sees one scan at a time") for key in MIXING]
    if not any(arm.recipe not in GENTLE for arm in config.arms):
        found.append(("schedule.warmup_steps", "these recipes warm up over schedule.warmup_share"))
    if not config.validation.any:
        found += [(key, "no cases are held back (validation.folds or validation.fraction)") for key in LOOKS]
    found += [(key, reason.format(task=config.task.name)) for key, reason in config.task.unread.items()]
    if not config.augmentation.flip_axes:
        found.append(("inference.mirror", "augmentation.flip_axes names no axis to mirror along"))
    if config.checkpoint is None:
        found.append(("transfer", "there is no checkpoint to take parts of"))
        found.append(("checkpoint_classes", "there is no checkpoint"))
        found += [(f"schedule.{key}", "training from scratch has a rate of its own") for key in OF_PRETRAINED]
    if not config.self_training.rounds:
        found += [(f"self_training.{name}", "self_training.rounds is 0") for name in ("start", "min_steps", "share",
                                                                                       "scans")]  # fmt: skip
    if not config.distil.teacher:
        found += [
            (f"distil.{key}", "distil.teacher is not given") for key in ("what", "weight", "temperature", "compare")
        ]
    if config.distil.what != "logits":
        found.append(("distil.temperature", "it softens logits, and features are matched"))
    if config.checkpoint is None:
        found.append(("distil.compare", "the scratch arm has no teacher anyway"))
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
