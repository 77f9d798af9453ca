"""The pre-training loop: one run from its folder's newest checkpoint to its last step or a request to stop."""

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.batch import Batch
from scanfoundry.datasets.loader import CropLoader
from scanfoundry.datasets.plan import Position
from scanfoundry.datasets.shards.hashes import Hashes
from scanfoundry.pretrain.checkpoint import checkpoint
from scanfoundry.pretrain.config.run import PretrainConfig
from scanfoundry.pretrain.distributed.preemption import StopRequest
from scanfoundry.pretrain.distributed.watchdog import Watchdog, collective_timeout_s
from scanfoundry.pretrain.distributed.world import World, barrier, join
from scanfoundry.pretrain.engine.averaged_encoder import add_average, move_average
from scanfoundry.pretrain.engine.engine import Engine
from scanfoundry.pretrain.engine.optimiser import learning_rate
from scanfoundry.pretrain.logging.image_logger import ImageLogger
from scanfoundry.pretrain.logging.monitors import Monitors
from scanfoundry.pretrain.logging.tracker import Tracker
from scanfoundry.pretrain.probes.probe_setup import Site
from scanfoundry.pretrain.probes.running import Probes
from scanfoundry.pretrain.training.initialize import Origin, record, start_encoder
from scanfoundry.pretrain.training.release import write_release
from scanfoundry.pretrain.training.run_folder import check_same_run, claim, held
from scanfoundry.pretrain.training.teachers import bring_teachers, record_teachers, with_teachers
from scanfoundry.pretrain.views import Views, check_depth, check_views

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
            checkpoint.check_same_data(found, loader.manifest_hash)
        check_views(config.data, objective, [kind.crop for kind in loader.plan.kinds], loader.plan.modalities)
        check_depth(objective, loader.plan.volumes)
        seen = Hashes([loader.hashes.halves()], {*origin.patients, *taught.patients})
        site = Site(seen, frozenset(loader.sites.values()))
        probes = Probes(config, encoder, world, site)
        engine = Engine(objective, config.optimiser, config.engine, world, loader.plan.modalities)
        monitors = Monitors(config, world, loader.plan)
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
        tracker = Tracker(config.run_dir, config.wandb, settings, step, config.steps, world.is_main)
        for line in (first_line, *loader.messages, *probes.messages):
            tracker.info(line)
        try:
            return _Loop(config, world, engine, loader, tracker, origin, monitors, probes, stop,
                         watchdog).advance(step)  # fmt: skip
        finally:
            tracker.close()


class _Loop:
    """The state of a running loop; `advance` is its table of contents."""

    def __init__(self, config: PretrainConfig, world: World, engine: Engine, loader: CropLoader,
                 tracker: Tracker, origin: Origin, monitors: Monitors, probes: Probes,
                 stop: StopRequest, watchdog: Watchdog) -> None:  # fmt: skip
        self.config, self.world, self.engine = config, world, engine
        self.loader, self.tracker, self.origin = loader, tracker, origin
        self.monitors, self.probes, self.stop, self.watchdog = monitors, probes, stop, watchdog
        self.root = config.run_dir / "checkpoints"
        self.views = Views(config.data, engine.objective.views, engine.objective.clean)
        self.image_logger = ImageLogger(config, world, loader.plan, self.views)
        self.bad_in_a_row = 0
        self.saved: Path | None = None

    def advance(self, step: int) -> RunResult:
        batches = iter(self.loader)
        self.engine.train()
        stopped = self.stop.agreed(self.world)  # the signal may have come while the run was starting
        while step < self.config.steps and not stopped:
            step = self._step(step, batches)
            self.watchdog.beat(step)
            stopped = self.stop.agreed(self.world)
            last = step == self.config.steps
            if stopped or last or step % self.config.checkpoint_every == 0:
                self._save(step)
                if not stopped or last:
                    self._release(step)
                self.watchdog.beat(step)
                stopped = stopped or self.stop.agreed(self.world)
        if step == self.config.steps:
            self._finish(step)
        elif stopped:
            self.tracker.info(f"stopped at step {step}; the same command continues from there")
        return RunResult(self.config.run_dir, step, step == self.config.steps, self.stop.signal)

    def _step(self, step: int, batches: Iterator[Batch]) -> int:
        started = time.perf_counter()
        micro = list(islice(batches, self.config.engine.accumulation))
        views = [self.views(batch) for batch in micro]
        waited = time.perf_counter() - started
        lr = learning_rate(step, self.config.steps, self.config.optimiser)
        step += 1
        record = self.engine.step(views, lr, progress=step / self.config.steps)
        if record.applied:
            move_average(self.engine.objective)
        seconds = time.perf_counter() - started
        self._guard(record.applied, step, micro)
        scans = sum(len(batch.keys) for batch in micro) * self.world.size
        line: dict[str, Any] = {
            "step": step, "loss": record.loss, "lr": lr, **record.metrics, "kind": "2d" if micro[0].is_2d else "3d",
            "samples_per_second": scans / seconds, "data_wait": waited / seconds, "applied": record.applied,
            "bad_samples": self.loader.stats()["bad_samples"], "memory_gib": _memory_gib(self.world),
        }  # fmt: skip
        self._show(step, line)
        return step

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

    def _guard(self, applied: bool, step: int, micro: list[Batch]) -> None:
        self.bad_in_a_row = 0 if applied else self.bad_in_a_row + 1
        if applied:
            return
        keys = [key for batch in micro for key in batch.keys]
        dump = self.config.run_dir / f"nonfinite-step-{step:08d}-rank-{self.world.rank}.txt"
        dump.write_text("\n".join(keys) + "\n")
        self.tracker.info(f"step {step}: the loss is not finite; step skipped, its samples are named in {dump.name}")
        if self.bad_in_a_row >= self.config.max_bad_steps:
            raise UserError(
                f"the loss was not finite in {self.bad_in_a_row} steps in a row (step {step}); "
                "look at the samples named in the run folder, or start a new run_dir with a lower optimiser.lr "
                f"and init={self.config.run_dir}"
            )

    def _save(self, step: int) -> None:
        parts = self.engine.objective.trained_parts()
        extra = {"monitors": self.monitors.first, "world_size": self.world.size, "parts": parts}
        stream = self.loader.state() | {"manifests": self.loader.manifest_hash}
        keep = self.config.keep_last
        self.saved = checkpoint.save(self.root, step, stream, lambda f: self.engine.save(f, extra), self.world, keep)

    def _release(self, step: int) -> None:
        if self.world.is_main and self.saved is not None:
            write_release(self.config, self.engine, self.loader, self.origin, step, self.saved)
        barrier(self.world)

    def _finish(self, step: int) -> None:
        if self.saved is None:  # nothing was left to do, but a kill may have come between checkpoint and release
            self.saved = checkpoint.newest(self.root, _silent, self.world)
            self._release(step)
        self.image_logger.write(self.engine, step)
        self.tracker.info(f"done: {step} steps; weights in {self.config.run_dir / 'model.safetensors'}")


def _continuing(step: int, before: int, now: int) -> str:
    return f"continuing from step {step}" + ("" if before == now else f", with {now} processes after {before}")


def _memory_gib(world: World) -> float:
    if world.device.type == "cuda":
        return round(torch.cuda.max_memory_allocated() / 2**30, 3)
    import resource

    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)


def _silent(text: str) -> None:
    """Other ranks leave the talking to the first."""
