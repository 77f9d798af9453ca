"""How the specification of a study becomes that of one trial's models, step by step.

1. `surveyed`: the recipe's head, and how cases are read, from the training cases as they were checked
2. `planned`:  what the training samples decide: weights of classes, a scale
3. `settled`:  what the held-back cases decide: a temperature, post-processing
4. `described`: how the models came about, for the file that predictions are made from
"""

from collections.abc import Sequence
from typing import Any

from scanfoundry.finetune.cases.cases import Case
from scanfoundry.finetune.checks.check import Checked
from scanfoundry.finetune.config.recipes import Arm, head_of
from scanfoundry.finetune.config.study import ValidationConfig
from scanfoundry.finetune.model_file import adapter_for
from scanfoundry.finetune.study.trial import TrialName
from scanfoundry.finetune.task import Adapter, Sample, Spec, Validation


def surveyed(spec: Spec, arm: Arm, cases: Sequence[Case], checked: Checked) -> Adapter[Any, Any]:
    """The task as the training cases are read for it; no case is read here that was checked before."""
    with_head = spec.model_copy(update={"head": head_of(arm.recipe)})
    return adapter_for(adapter_for(with_head).surveyed(cases, checked))


def planned(adapter: Adapter[Any, Any], samples: Sequence[Sample[Any]]) -> Adapter[Any, Any]:
    """The task as it is trained."""
    return adapter_for(adapter.planned(samples))


def settled(adapter: Adapter[Any, Any], held: Validation | None, config: ValidationConfig) -> Adapter[Any, Any]:
    """The task as it predicts; without held-back cases nothing changes."""
    return adapter if held is None else adapter_for(adapter.settled(held, config))


def described(
    adapter: Adapter[Any, Any], name: TrialName, steps: Sequence[int], teacher: dict[str, Any] | None = None
) -> Spec:
    """The specification that is written beside the weights; steps: of each model; teacher: who took part, if any."""
    trained: dict[str, Any] = {"arm": name.arm.name, "shots": name.shots, "seed": name.seed, "steps": list(steps)}
    if teacher is not None:
        trained["teacher"] = teacher
    return adapter.spec.model_copy(update={"trained": trained})
