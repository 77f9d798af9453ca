"""The steps of a run, from the one that it begins or goes on with to its last or to a request to stop."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from scanfoundry.datasets.batch import Batch
from scanfoundry.datasets.loader import CropLoader
from scanfoundry.datasets.sampling.segments import sealed
from scanfoundry.pretrain.checkpoint import checkpoint
from scanfoundry.pretrain.checkpoint.background import CheckpointWriter
from scanfoundry.pretrain.config.run import PretrainConfig
from scanfoundry.pretrain.distributed.preemption import StopRequest
from scanfoundry.pretrain.distributed.watchdog import Watchdog
from scanfoundry.pretrain.distributed.world import World
from scanfoundry.pretrain.engine.averaged_encoder import move_average
from scanfoundry.pretrain.engine.engine import Engine
from scanfoundry.pretrain.engine.optimiser import learning_rate
from scanfoundry.pretrain.logging.step_profiler import StepProfiler, part
from scanfoundry.pretrain.logging.tracker import Tracker
from scanfoundry.pretrain.objectives.masked import size_of
from scanfoundry.pretrain.training.release import ReleaseWriter
from scanfoundry.pretrain.training.step_log import Step, StepLog
from scanfoundry.pretrain.views import Views

LOOK_EVERY = 8  # steps between the looks at a checkpoint in flight, which cost a collective among several ranks


@dataclass(frozen=True)
class RunResult:
    """The end of a call of `run`: the last step, whether the run is complete, and the signal that stopped it."""

    run_dir: Path
    step: int
    complete: bool
    signal: int | None  # the signal that stopped it, if one did


class Steps:
    """The state of a running loop; `advance` is its table of contents."""

    def __init__(self, config: PretrainConfig, world: World, engine: Engine, loader: CropLoader,
                 tracker: Tracker, writer: CheckpointWriter, releases: ReleaseWriter | None, log: StepLog,
                 stop: StopRequest, watchdog: Watchdog, views: Views) -> None:  # fmt: skip
        self.config, self.world, self.engine = config, world, engine
        self.loader, self.tracker, self.writer, self.releases = loader, tracker, writer, releases
        self.log, self.stop, self.watchdog = log, stop, watchdog
        self.views = views

    def advance(self, step: int) -> RunResult:
        batches = iter(self.loader)
        self.engine.train()
        stopped = self.stop.agreed(self.world)  # the signal may have come while the run was starting
        profiler = StepProfiler(self.config.profile, self.config.run_dir, self.world, self.tracker.info, step)
        while step < self.config.steps and not stopped:
            step = self._step(step, batches)
            profiler.step(step)
            self.watchdog.beat(step)
            stopped = self.stop.agreed(self.world) if self.world.size == 1 else self.log.asked_to_stop
            if self.world.size == 1 or step % LOOK_EVERY == 0:
                self.writer.look()
            last = step == self.config.steps
            if stopped or last:
                self.log.conclude()
            if stopped or last or step % self.config.checkpoint_every == 0:
                self._save(step, released=not stopped or last, more=not (stopped or last))
                self.watchdog.beat(step)
                stopped = stopped or self.stop.agreed(self.world)
        profiler.close()
        self.writer.wait()
        self.watchdog.beat(step)
        if step == self.config.steps:
            self._finish(step)
        elif stopped:
            self.tracker.info(f"stopped at step {step}; the same command continues from there")
        return RunResult(self.config.run_dir, step, step == self.config.steps, self.stop.signal)

    def _step(self, step: int, batches: Iterator[Batch]) -> int:
        done = Step(step + 1, learning_rate(step, self.config.steps, self.config.optimiser), time.perf_counter())
        step += 1
        views, progress = self._views(done, batches), step / self.config.steps
        asked = self.stop.flags() if self.world.size > 1 else ()
        with part("step"):
            done.pending = self.engine.launch(views, done.lr, progress, asked)
        done.pending.if_applied(lambda: move_average(self.engine.objective))
        self.log.add(done)
        return step

    def _views(self, done: Step, batches: Iterator[Batch]) -> Iterator[tuple[Batch, ...]]:
        for _ in range(self.config.engine.accumulation):
            began = time.perf_counter()
            with part("data"):
                batch = next(batches)
                views = self.views(batch)
            done.keys, done.is_2d, done.size = done.keys + batch.keys, batch.is_2d, size_of(batch)
            done.waited += time.perf_counter() - began
            yield views

    def _save(self, step: int, released: bool, more: bool) -> None:
        """Write the checkpoint of this step, and with it its release: beside the next steps, where `more` come."""
        self.writer.wait(step)
        parts = self.engine.objective.trained_parts()
        extra = {"monitors": dict(self.log.monitors.first), "world_size": self.world.size, "parts": parts}
        stream = self.loader.state() | sealed(self.loader.plan.segments)
        beside = more and self.config.background_checkpoints
        snapshot = self.engine.snapshot(extra, copied=beside)
        self.writer.begin(step, stream, snapshot.write, self._release(step) if released else None)
        if not beside:
            self.writer.wait()

    def _release(self, step: int) -> Callable[[Path], object]:
        def write(saved: Path) -> None:
            if self.releases is not None:
                self.releases.write(saved, step)

        return write

    def _finish(self, step: int) -> None:
        if self.writer.saved is None:  # nothing was left to do, but a kill may have come between seal and release
            saved = checkpoint.newest(self.config.run_dir / "checkpoints", None, self.world)
            if saved is not None:
                self.writer.release(step, saved, self._release(step))
                self.writer.wait()
        self.log.image_logger.write(self.engine, step)
        self.tracker.info(f"done: {step} steps; weights in {self.config.run_dir / 'model.safetensors'}")
