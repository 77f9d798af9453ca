"""What steps report, read once they are done, and what is shown of it: lines, monitors, probes, pictures."""

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.geometry import Size3D
from scanfoundry.datasets.loader import CropLoader
from scanfoundry.pretrain.checkpoint.background import CheckpointWriter
from scanfoundry.pretrain.config.run import PretrainConfig
from scanfoundry.pretrain.distributed.preemption import StopRequest
from scanfoundry.pretrain.distributed.world import World
from scanfoundry.pretrain.engine.engine import Engine, PendingStep
from scanfoundry.pretrain.logging.image_logger import ImageLogger
from scanfoundry.pretrain.logging.monitors import Monitors
from scanfoundry.pretrain.logging.tracker import Tracker
from scanfoundry.pretrain.logging.utilisation import Utilisation
from scanfoundry.pretrain.probes.running import Probes
from scanfoundry.pretrain.views import Views


@dataclass
class Step:
    """A step from when its batches are read until its line is logged.

    Attributes:
        number: from 1.
        lr: its learning rate.
        started: when, by `time.perf_counter`.
        keys: of its samples on this rank.
        is_2d: whether they are images.
        size: (D, H, W) of their crops, as they were loaded.
        waited: seconds that were spent on reading and on launching views.
        pending: what it reports, once it was launched.
    """

    number: int
    lr: float
    started: float
    keys: list[str] = field(default_factory=list)
    is_2d: bool = False
    size: Size3D = (1, 1, 1)
    waited: float = 0.0
    pending: PendingStep | None = None


class StepLog:
    """Reads launched steps in their order, and logs them.

    Attributes:
        monitors: whose first measurements a checkpoint keeps.
        asked_to_stop: whether any rank was, by the time of the last step that was read.
    """

    def __init__(self, config: PretrainConfig, world: World, engine: Engine, loader: CropLoader, tracker: Tracker,
                 writer: CheckpointWriter, monitors: Monitors, probes: Probes, stop: StopRequest,
                 views: Views) -> None:  # fmt: skip
        self.monitors, self.asked_to_stop = monitors, False
        self.image_logger = ImageLogger(config, world, loader.plan, views)
        self._config, self._world, self._engine, self._loader = config, world, engine, loader
        self._tracker, self._writer, self._probes, self._stop = tracker, writer, probes, stop
        # A GPU is given the next step before the host reads what this one reports.
        self._behind = 0 if world.device.type == "cpu" else 1
        self._open: deque[Step] = deque()  # launched, not logged yet
        self._concluded = 0.0  # when the last step was
        self._utilisation = Utilisation(config, world, loader.plan.kinds)
        self._bad_in_a_row = 0

    def add(self, step: Step) -> None:
        """Take a launched step, and log what is due."""
        self._open.append(step)
        self.conclude(0 if self._looked_at(step.number) else self._behind)

    def conclude(self, behind: int = 0) -> None:
        """Read what launched steps report, and log it, but of the last `behind` ones."""
        while len(self._open) > behind:
            done = self._open.popleft()
            assert done.pending is not None
            record = done.pending.read()
            if record.asked:
                self.asked_to_stop = self._stop.noted(record.asked) or self.asked_to_stop
            now = time.perf_counter()
            seconds = now - max(done.started, self._concluded)
            self._concluded = now
            self._guard(record.applied, done)
            line: dict[str, Any] = {
                "step": done.number, "loss": record.loss, "lr": done.lr, **record.metrics,
                "kind": "2d" if done.is_2d else "3d",
                "samples_per_second": len(done.keys) * self._world.size / seconds, "data_wait": done.waited / seconds,
                "applied": record.applied, "bad_samples": self._loader.stats()["bad_samples"],
                "memory_gib": _memory_gib(self._world), **self._utilisation.of_step(done.size, seconds),
            }  # fmt: skip
            self._show(done.number, line)

    def _looked_at(self, step: int) -> bool:
        """Whether weights are saved, measured or drawn after this step: not those of the next one."""
        every = self._config.picture_every
        due = self.monitors.due(step) or self._probes.due(step) or step == self._config.steps
        return due or step % self._config.checkpoint_every == 0 or bool(every and step % every == 0)

    def _show(self, step: int, line: dict[str, Any]) -> None:
        """Log a step's line, with the monitors and the picture that it is the turn of."""
        picture = None
        if self._config.picture_every and step % self._config.picture_every == 0:
            picture = self.image_logger.write(self._engine, step)
        measured = self.monitors.measure(self._engine) if self.monitors.due(step) else {}
        for warning in self.monitors.warnings(measured):
            self._tracker.info(f"step {step}: {warning}")
        measured |= self._probes.measure(self._engine, step)
        write = step % self._config.log_every == 0 or step == self._config.steps or bool(measured)
        self._tracker.log({**line, **measured}, write, picture)

    def _guard(self, applied: bool, done: Step) -> None:
        self._bad_in_a_row = 0 if applied else self._bad_in_a_row + 1
        if applied:
            return
        step = done.number
        dump = self._config.run_dir / f"nonfinite-step-{step:08d}-rank-{self._world.rank}.txt"
        dump.write_text("\n".join(done.keys) + "\n")
        self._tracker.info(f"step {step}: the loss is not finite; step skipped, its samples are named in {dump.name}")
        if self._bad_in_a_row >= self._config.max_bad_steps:
            self._writer.wait()  # all ranks are here, and what is in flight is what to start again from
            raise UserError(
                f"the loss was not finite in {self._bad_in_a_row} steps in a row (step {step}); "
                "look at the samples named in the run folder, or start a new run_dir with a lower optimiser.lr "
                f"and init={self._config.run_dir}"
            )


def _memory_gib(world: World) -> float:
    if world.device.type == "cuda":
        return round(torch.cuda.max_memory_allocated() / 2**30, 3)
    import resource

    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)
