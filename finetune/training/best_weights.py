"""Which weights of a training are kept."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from scanfoundry.finetune.config.study import ValidationConfig
from scanfoundry.finetune.task import TaskModel
from scanfoundry.finetune.training.resuming import Part


@contextmanager
def evaluating(model: TaskModel) -> Iterator[TaskModel]:
    """The model in evaluation mode; afterwards it is in the mode that it was in."""
    training = model.training
    try:
        yield model.eval()
    finally:
        model.train(training)


class BestWeights:
    """Which weights are kept: the last ones or their average; of the best look at held-back cases, if there are any."""

    def __init__(
        self,
        model: TaskModel,
        momentum: float,
        validation: ValidationConfig,
        check: Callable[[TaskModel], float] | None,
    ) -> None:
        self._model, self._check, self._validation = model, check, validation
        self._average: AveragedModel | None = None
        if momentum:
            self._average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(momentum), use_buffers=True)
        self._warm = 1 / (1 - momentum)  # steps after which the average has forgotten where it came from
        self.found: list[tuple[int, float]] = []
        self.best_step: int | None = None
        self._best: tuple[float, dict[str, Tensor]] | None = None

    @property
    def enough(self) -> bool:
        """Whether patience is at its end."""
        patience = self._validation.patience
        if patience is None or self.best_step is None:
            return False
        return sum(step > self.best_step for step, _ in self.found) >= patience

    def after(self, step: int, done: float) -> None:
        """Look at the held-back cases where it is time to."""
        if self._average is not None:
            self._average.update_parameters(self._model)
        if self._check is None or (done * self._validation.checks < len(self.found) + 1 and done < 1):
            return
        model = self.current(step)
        with evaluating(model):
            value = self._check(model)
        self.found.append((step, value))
        if self._best is None or value >= self._best[0] or math.isnan(self._best[0]):
            self._best = value, {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
            self.best_step = step

    def finish(self) -> None:
        """Put the weights that count into the model."""
        if self._best is not None:
            self._model.load_state_dict(self._best[1])
        elif self._average is not None:
            self._model.load_state_dict(self._average.module.state_dict())

    def state(self) -> Part:
        """The average and the best weights, and what was found, for a snapshot."""
        held = {} if self._average is None else {f"average/{k}": v for k, v in self._average.state_dict().items()}
        if self._best is not None:
            held |= {f"best/{name}": tensor for name, tensor in self._best[1].items()}
        value = None if self._best is None else self._best[0]
        return held, {"found": self.found, "best_step": self.best_step, "best": value}

    def restore(self, part: Part) -> None:
        """Go on from what `state` gave."""
        held, facts = part
        here = {name: tensor.device for name, tensor in self._model.state_dict().items()}
        if self._average is not None:
            self._average.load_state_dict(_below("average/", held))
        if facts["best"] is not None:
            self._best = facts["best"], {name: t.to(here[name]) for name, t in _below("best/", held).items()}
        self.found = [(step, value) for step, value in facts["found"]]
        self.best_step = facts["best_step"]

    def current(self, step: int) -> TaskModel:
        """The model as it would be kept now."""
        if self._average is None or step < self._warm:
            return self._model
        averaged = self._average.module
        assert isinstance(averaged, TaskModel)
        return averaged


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
