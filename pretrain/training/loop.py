"""The pre-training loop: one run from its folder's newest checkpoint to its last step or a request to stop."""

import errno
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from scanfoundry.backbones.models.release import remove_leftovers
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.extras import check_installed
from scanfoundry.configs.geometry import Size3D
from scanfoundry.datasets.batch import Batch
from scanfoundry.datasets.loader import CropLoader
from scanfoundry.datasets.plan import Position
from scanfoundry.pretrain.checkpoint import checkpoint
from scanfoundry.pretrain.checkpoint.background import CheckpointWriter
from scanfoundry.pretrain.config.run import PretrainConfig
from scanfoundry.pretrain.distributed.preemption import StopRequest
from scanfoundry.pretrain.distributed.watchdog import Watchdog, collective_timeout_s
from scanfoundry.pretrain.distributed.world import World, barrier, join
from scanfoundry.pretrain.engine.averaged_encoder import add_average, move_average
from scanfoundry.pretrain.engine.engine import Engine, PendingStep
from scanfoundry.pretrain.engine.optimiser import learning_rate
from scanfoundry.pretrain.logging.image_logger import ImageLogger
from scanfoundry.pretrain.logging.monitors import Monitors
from scanfoundry.pretrain.logging.step_profiler import StepProfiler, part
from scanfoundry.pretrain.logging.tracker import Tracker
from scanfoundry.pretrain.logging.utilisation import Utilisation
from scanfoundry.pretrain.probes.probe_setup import Site
from scanfoundry.pretrain.probes.running import Probes
from scanfoundry.pretrain.training.initialize import record, start_encoder
from scanfoundry.pretrain.training.release import ReleaseWriter
from scanfoundry.pretrain.training.run_folder import check_same_run, claim, held
from scanfoundry.pretrain.training.teachers import bring_teachers, record_teachers, with_teachers
from scanfoundry.pretrain.views import Views, check_depth, check_views

LOOK_EVERY = 8  # steps between the looks at a checkpoint in flight, which cost a collective among several ranks
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}  # a person's to mend


@dataclass(frozen=True)
class RunResult:
    """The end of a call of `run`: the last step, whether the run is complete, and the signal that stopped it."""

    run_dir: Path
    step: int
    complete: bool
    signal: int | None  # the signal that stopped it, if one did


def run(
    config: PretrainConfig, stop: StopRequest | None = None, hung: Callable[[str], None] | None = None
) -> RunResult:
    """Pre-train, resuming in this order:

    1. join the process group and fix CPU threads (the reduction order depends on them);
    2. hold the run folder, so that no other process writes to it;
    3. refuse one whose configuration computes something else;
    4. find the newest complete checkpoint, of whatever world size;
    5. build encoder, from the seed or `init`, and objective;
    6. open the stream of crops at the position in its seal;
    7. load weights, optimiser and RNG states;
    8. drop logged metrics past its step.

    stop: handlers that stand already. hung: is told, in one sentence, that the watchdog is about to end the process.
    """
    check_installed(*(["tensorboard"] if config.tensorboard else []))
    with ExitStack() as stack:
        stop = stop or stack.enter_context(StopRequest())
        world = join(config.device, config.threads, collective_timeout_s(config.step_timeout_s))
        check_same_run(config)  # before a lock is put into what may be somebody's home
        stack.enter_context(held(config.run_dir, world))
        check_same_run(config)
        watchdog = stack.enter_context(Watchdog(config.step_timeout_s, world.rank, hung))
        try:
            return _run(config, world, stop, watchdog)
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise
            raise UserError(
                f"cannot write to {error.filename or config.run_dir}: {error.strerror}; "
                "once that is mended, the same command continues from the newest checkpoint"
            ) from error


def _run(config: PretrainConfig, world: World, stop: StopRequest, watchdog: Watchdog) -> RunResult:
    root = config.run_dir / "checkpoints"
    if world.is_main:
        checkpoint.clean(root)
        remove_leftovers(config.run_dir)
    barrier(world)
    found = checkpoint.newest(root, print if world.is_main else _silent, world)
    step, stream = checkpoint.position(found, config.seed) if found else (0, Position())
    torch.manual_seed(config.seed)
    start = start_encoder(config, fresh=found is None)
    encoder = start.encoder
    objective = config.objective.build(encoder)
    origin = start.fill(objective)
    taught = bring_teachers(config, objective, fresh=found is None)
    add_average(objective, config.ema)
    with CropLoader(config.data, config.seed, world.rank, world.size, config.engine.accumulation, stream,
                    world.device) as loader:  # fmt: skip
        if found is not None:
            checkpoint.check_same_data(found, loader.manifest_hash, loader.plan.earlier_manifests())
        check_views(config.data, objective, [kind.crop for kind in loader.plan.kinds], loader.plan.modalities)
        check_depth(objective, loader.plan.volumes)
        site = Site(
            frozenset({*loader.patients(), *origin.patients, *taught.patients}), frozenset(loader.sites.values())
        )
        probes = Probes(config, encoder, world, site)
        engine = Engine(objective, config.optimiser, config.engine, world, loader.plan.modalities)
        monitors = Monitors(config, world)
        if world.is_main:
            claim(config)
            record(config, origin)
            record_teachers(config, taught)
        origin = with_teachers(origin, taught)
        first_line = origin.summary
        if found is not None:
            state = engine.load(found)
            monitors.first = state["monitors"]
            first_line = _continuing(step, state["world_size"], world.size)
        settings = config.model_dump(mode="json")
        tracker = Tracker(config.run_dir, config.wandb, settings, step, config.steps, world.is_main,
                          config.tensorboard)  # fmt: skip
        for line in (first_line, *loader.messages, *probes.messages):
            tracker.info(line)
        try:
            releases = ReleaseWriter(config, engine.objective, loader, origin) if world.is_main else None
            with CheckpointWriter(root, config.keep_last, world, tracker.info) as writer:
                return _Loop(config, world, engine, loader, tracker, writer, releases, monitors, probes, stop,
                             watchdog).advance(step)  # fmt: skip
        finally:
            tracker.close()


@dataclass
class _Step:
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


class _Loop:
    """The state of a running loop; `advance` is its table of contents."""

    def __init__(self, config: PretrainConfig, world: World, engine: Engine, loader: CropLoader,
                 tracker: Tracker, writer: CheckpointWriter, releases: ReleaseWriter | None, monitors: Monitors,
                 probes: Probes, stop: StopRequest, watchdog: Watchdog) -> None:  # fmt: skip
        self.config, self.world, self.engine = config, world, engine
        self.loader, self.tracker, self.writer, self.releases = loader, tracker, writer, releases
        self.monitors, self.probes, self.stop, self.watchdog = monitors, probes, stop, watchdog
        self.views = Views(config.data, engine.objective.views, engine.objective.clean)
        self.image_logger = ImageLogger(config, world, self.views)
        # A GPU is given the next step before the host reads what this one reports.
        self.behind = 0 if world.device.type == "cpu" else 1
        self.open: deque[_Step] = deque()  # launched, not logged yet
        self.concluded = 0.0  # when the last step was
        self.asked_to_stop = False
        self.utilisation = Utilisation(config, world, loader.plan.kinds)
        self.bad_in_a_row = 0

    def advance(self, step: int) -> RunResult:
        batches = iter(self.loader)
        self.engine.train()
        stopped = self.stop.agreed(self.world)  # the signal may have come while the run was starting
        profiler = StepProfiler(self.config.profile, self.config.run_dir, self.world, self.tracker.info, step)
        while step < self.config.steps and not stopped:
            step = self._step(step, batches)
            profiler.step(step)
            self.watchdog.beat(step)
            stopped = self.stop.agreed(self.world) if self.world.size == 1 else self.asked_to_stop
            if self.world.size == 1 or step % LOOK_EVERY == 0:
                self.writer.look()
            last = step == self.config.steps
            if stopped or last:
                self._conclude(behind=0)
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
        done = _Step(step + 1, learning_rate(step, self.config.steps, self.config.optimiser), time.perf_counter())
        step += 1
        views, progress = self._views(done, batches), step / self.config.steps
        asked = self.stop.flags() if self.world.size > 1 else ()
        with part("step"):
            done.pending = self.engine.launch(views, done.lr, progress, asked)
        done.pending.if_applied(lambda: move_average(self.engine.objective))
        self.open.append(done)
        self._conclude(behind=0 if self._looked_at(step) else self.behind)
        return step

    def _views(self, done: _Step, batches: Iterator[Batch]) -> Iterator[tuple[Batch, ...]]:
        for _ in range(self.config.engine.accumulation):
            began = time.perf_counter()
            with part("data"):
                batch = next(batches)
                views = self.views(batch)
            done.keys, done.is_2d, done.size = done.keys + batch.keys, batch.is_2d, size_of(batch)
            done.waited += time.perf_counter() - began
            yield views

    def _looked_at(self, step: int) -> bool:
        """Whether weights are saved, measured or drawn after this step: not those of the next one."""
        every = self.config.picture_every
        due = self.monitors.due(step) or self.probes.due(step) or step == self.config.steps
        return due or step % self.config.checkpoint_every == 0 or bool(every and step % every == 0)

    def _conclude(self, behind: int) -> None:
        """Read what launched steps report, and log it, but of the last `behind` ones."""
        while len(self.open) > behind:
            done = self.open.popleft()
            assert done.pending is not None
            record = done.pending.read()
            if record.asked:
                self.asked_to_stop = self.stop.noted(record.asked) or self.asked_to_stop
            now = time.perf_counter()
            seconds = now - max(done.started, self.concluded)
            self.concluded = now
            self._guard(record.applied, done)
            line: dict[str, Any] = {
                "step": done.number, "loss": record.loss, "lr": done.lr, **record.metrics,
                "kind": "2d" if done.is_2d else "3d",
                "samples_per_second": len(done.keys) * self.world.size / seconds, "data_wait": done.waited / seconds,
                "applied": record.applied, "bad_samples": self.loader.stats()["bad_samples"],
                "memory_gib": _memory_gib(self.world), **self.utilisation.of_step(done.size, seconds),
            }  # fmt: skip
            self._show(done.number, line)

    def _show(self, step: int, line: dict[str, Any]) -> None:
        """Log a step's line, with the monitors and the picture that it is the turn of."""
        picture = None
        if self.config.picture_every and step % self.config.picture_every == 0:
            picture = self.image_logger.write(self.engine, step)
        measured = self.monitors.measure(self.engine) if self.monitors.due(step) else {}
        for warning in self.monitors.warnings(measured):
            self.tracker.info(f"step {step}: {warning}")
        measured |= self.probes.measure(self.engine, step)
        write = step % self.config.log_every == 0 or step == self.config.steps or bool(measured)
        self.tracker.log({**line, **measured}, write, picture)

    def _guard(self, applied: bool, done: _Step) -> None:
        self.bad_in_a_row = 0 if applied else self.bad_in_a_row + 1
        if applied:
            return
        step = done.number
        dump = self.config.run_dir / f"nonfinite-step-{step:08d}-rank-{self.world.rank}.txt"
        dump.write_text("\n".join(done.keys) + "\n")
        self.tracker.info(f"step {step}: the loss is not finite; step skipped, its samples are named in {dump.name}")
        if self.bad_in_a_row >= self.config.max_bad_steps:
            self.writer.wait()  # all ranks are here, and what is in flight is what to start again from
            raise UserError(
                f"the loss was not finite in {self.bad_in_a_row} steps in a row (step {step}); "
                "look at the samples named in the run folder, or start a new run_dir with a lower optimiser.lr "
                f"and init={self.config.run_dir}"
            )

    def _save(self, step: int, released: bool, more: bool) -> None:
        """Write the checkpoint of this step, and with it its release: beside the next steps, where `more` come."""
        self.writer.wait(step)
        parts = self.engine.objective.trained_parts()
        extra = {"monitors": dict(self.monitors.first), "world_size": self.world.size, "parts": parts}
        stream = self.loader.state() | {"manifests": dict(self.loader.manifest_hash)}
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
            saved = checkpoint.newest(self.config.run_dir / "checkpoints", _silent, self.world)
            if saved is not None:
                self.writer.release(step, saved, self._release(step))
                self.writer.wait()
        self.image_logger.write(self.engine, step)
        self.tracker.info(f"done: {step} steps; weights in {self.config.run_dir / 'model.safetensors'}")


def _continuing(step: int, before: int, now: int) -> str:
    return f"continuing from step {step}" + ("" if before == now else f", with {now} processes after {before}")


def _memory_gib(world: World) -> float:
    if world.device.type == "cuda":
        return round(torch.cuda.max_memory_allocated() / 2**30, 3)
    import resource

    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)


def size_of(batch: Batch) -> Size3D:
    """(D, H, W) of a batch's crops, as they were loaded."""
    depth, height, width = batch.voxels.shape[2:]
    return depth, height, width


def _silent(text: str) -> None:
    """Other ranks leave the talking to the first."""
