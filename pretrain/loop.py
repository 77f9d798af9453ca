"""The pre-training loop: one run from its folder's newest checkpoint to its last step or a request to stop."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from scanforge.backbones.registry import build
from scanforge.configs.errors import UserError
from scanforge.datasets.augment.pipeline import Augment
from scanforge.datasets.batch import Batch
from scanforge.datasets.loader import CropLoader
from scanforge.datasets.plan import Position
from scanforge.pretrain import checkpoint, rng
from scanforge.pretrain.config import PretrainConfig
from scanforge.pretrain.distributed import World, barrier, join
from scanforge.pretrain.engine import Engine
from scanforge.pretrain.export import write_release
from scanforge.pretrain.gallery import Gallery
from scanforge.pretrain.objectives import Objective
from scanforge.pretrain.optimiser import learning_rate
from scanforge.pretrain.preemption import StopRequest
from scanforge.pretrain.run_folder import claim, refuse_another_run
from scanforge.pretrain.tracking import Tracker


@dataclass(frozen=True)
class RunResult:
    """How a call of `run` ended."""

    run_dir: Path
    step: int
    complete: bool
    signal: int | None  # the signal that stopped it, if one did


def run(config: PretrainConfig, stop: StopRequest | None = None) -> RunResult:
    """Pre-train, resuming in this order:

    1. join the process group and fix CPU threads (the reduction order depends on them);
    2. refuse a run folder whose configuration computes something else;
    3. build encoder and objective from the seed;
    4. find the newest complete checkpoint;
    5. open the stream of crops at the position in its seal;
    6. load weights, optimiser and RNG states;
    7. drop logged metrics past its step.
    """
    world = join(config.device, config.threads)
    refuse_another_run(config)
    torch.manual_seed(config.seed)
    objective = config.objective.build(build(config.backbone))
    for crop in ((1, *config.data.crop_2d) if config.data.crop_2d else None, config.data.crop_3d):
        if crop is not None:
            objective.check_shape(crop)
    if stop is not None:
        return _run(config, world, objective, stop)
    with StopRequest() as own:
        return _run(config, world, objective, own)


def _run(config: PretrainConfig, world: World, objective: Objective, stop: StopRequest) -> RunResult:
    root = config.run_dir / "checkpoints"
    if world.is_main:
        checkpoint.clean(root)
    barrier(world)
    found = checkpoint.newest(root, print if world.is_main else _silent)
    step, stream = checkpoint.position(found, config.seed) if found else (0, Position())
    with CropLoader(config.data, config.seed, world.rank, world.size, config.engine.accumulation, stream,
                    world.device) as loader:  # fmt: skip
        if found is not None:
            checkpoint.refuse_other_data(found, loader.manifest_hash)
        engine = Engine(objective, config.optimiser, config.engine, world)
        if world.is_main:
            claim(config)
        if found is not None:
            rng.restore(engine.load(found)["rng"], world)
        settings = config.model_dump(mode="json")
        tracker = Tracker(config.run_dir, config.wandb, settings, step, config.steps, world.is_main)
        if found is not None:
            tracker.say(f"continuing from step {step}")
        try:
            return _Loop(config, world, engine, loader, tracker, stop).advance(step)
        finally:
            tracker.close()


class _Loop:
    """The state of a running loop; `advance` is its table of contents."""

    def __init__(self, config: PretrainConfig, world: World, engine: Engine, loader: CropLoader,
                 tracker: Tracker, stop: StopRequest) -> None:  # fmt: skip
        self.config, self.world, self.engine = config, world, engine
        self.loader, self.tracker, self.stop = loader, tracker, stop
        self.root = config.run_dir / "checkpoints"
        self.augment = Augment(config.data.augment)
        self.gallery = Gallery(config, world)
        self.bad_in_a_row = 0
        self.saved: Path | None = None

    def advance(self, step: int) -> RunResult:
        batches = iter(self.loader)
        self.engine.train()
        stopped = False
        while step < self.config.steps and not stopped:
            step = self._step(step, batches)
            stopped = self.stop.agreed(self.world)
            last = step == self.config.steps
            if stopped or last or step % self.config.checkpoint_every == 0:
                self._save(step)
                if not stopped or last:
                    self._release(step)
        if step == self.config.steps:
            self._finish(step)
        elif stopped:
            self.tracker.say(f"stopped at step {step}; the same command continues from there")
        return RunResult(self.config.run_dir, step, step == self.config.steps, self.stop.signal)

    def _step(self, step: int, batches: Iterator[Batch]) -> int:
        started = time.perf_counter()
        micro = [self.augment(batch) for batch in islice(batches, self.config.engine.accumulation)]
        waited = time.perf_counter() - started
        lr = learning_rate(step, self.config.steps, self.config.optimiser)
        record = self.engine.step(micro, lr)
        seconds = time.perf_counter() - started
        step += 1
        self._guard(record.applied, step, micro)
        scans = sum(len(batch.keys) for batch in micro) * self.world.size
        line: dict[str, Any] = {
            "step": step, "loss": record.loss, "lr": lr, **record.metrics, "kind": "2d" if micro[0].is_2d else "3d",
            "samples_per_second": scans / seconds, "data_wait": waited / seconds, "applied": record.applied,
            "bad_samples": self.loader.stats()["bad_samples"], "memory_gib": _memory_gib(self.world),
        }  # fmt: skip
        picture = None
        if self.config.picture_every and step % self.config.picture_every == 0:
            picture = self.gallery.hang(self.engine, step)
        self.tracker.log(line, step % self.config.log_every == 0 or step == self.config.steps, picture)
        return step

    def _guard(self, applied: bool, step: int, micro: list[Batch]) -> None:
        self.bad_in_a_row = 0 if applied else self.bad_in_a_row + 1
        if applied:
            return
        keys = [key for batch in micro for key in batch.keys]
        dump = self.config.run_dir / f"nonfinite-step-{step:08d}-rank-{self.world.rank}.txt"
        dump.write_text("\n".join(keys) + "\n")
        self.tracker.say(f"step {step}: the loss is not finite; step skipped, its samples are named in {dump.name}")
        if self.bad_in_a_row >= self.config.max_bad_steps:
            raise UserError(
                f"the loss was not finite in {self.bad_in_a_row} steps in a row (step {step}); "
                "lower optimiser.lr or look at the samples named in the run folder"
            )

    def _save(self, step: int) -> None:
        state = {"rng": rng.gather(self.world)}
        stream = self.loader.state() | {"manifests": self.loader.manifest_hash}
        keep = self.config.keep_last
        self.saved = checkpoint.save(self.root, step, stream, lambda f: self.engine.save(f, state), self.world, keep)

    def _release(self, step: int) -> None:
        if self.world.is_main and self.saved is not None:
            write_release(self.config, self.engine, self.loader, step, self.saved)
        barrier(self.world)

    def _finish(self, step: int) -> None:
        if self.saved is None:  # nothing was left to do, but a kill may have come between checkpoint and release
            self.saved = checkpoint.newest(self.root, _silent)
            self._release(step)
        self.gallery.hang(self.engine, step)
        self.tracker.say(f"done: {step} steps; weights in {self.config.run_dir / 'model.safetensors'}")


def _memory_gib(world: World) -> float:
    if world.device.type == "cuda":
        return round(torch.cuda.max_memory_allocated() / 2**30, 3)
    import resource

    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)


def _silent(text: str) -> None:
    """Other ranks leave the talking to the first."""
