"""The pre-training loop: one run from its folder's newest checkpoint to its last step or a request to stop."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml

from scanforge.backbones.registry import build
from scanforge.configs.errors import UserError
from scanforge.configs.loading import read_yaml
from scanforge.datasets.batch import Batch
from scanforge.datasets.loader import CropLoader
from scanforge.datasets.plan import Position
from scanforge.pretrain import checkpoint
from scanforge.pretrain.config import FREE_TO_CHANGE, PretrainConfig
from scanforge.pretrain.distributed import World, barrier, join
from scanforge.pretrain.engine import Engine
from scanforge.pretrain.export import write_release
from scanforge.pretrain.gallery import Gallery
from scanforge.pretrain.optimiser import learning_rate
from scanforge.pretrain.preemption import StopRequest
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
    _refuse_another_run(config)
    torch.manual_seed(config.seed)
    objective = config.objective.build(build(config.backbone))
    for crop in ((1, *config.data.crop_2d) if config.data.crop_2d else None, config.data.crop_3d):
        if crop is not None:
            objective.check_shape(crop)
    if stop is not None:
        return _run(config, world, objective, stop)
    with StopRequest() as own:
        return _run(config, world, objective, own)


def _run(config: PretrainConfig, world: World, objective: torch.nn.Module, stop: StopRequest) -> RunResult:
    root = config.run_dir / "checkpoints"
    if world.is_main:
        checkpoint.clean(root)
    barrier(world)
    found = checkpoint.newest(root, print if world.is_main else _silent)
    step, stream = checkpoint.position(found, config.seed) if found else (0, Position())
    with CropLoader(config.data, config.seed, world.rank, world.size, config.engine.accumulation, stream) as loader:
        if found is not None:
            checkpoint.refuse_other_data(found, loader.manifest_hash)
        engine = Engine(objective, config.optimiser, config.engine, world)
        _claim(config, world)
        if found is not None:
            _restore_rng(engine.load(found)["rng"], world)
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
        self.gallery = Gallery(config, world)
        self.bad_in_a_row = 0
        self.saved: tuple[int, Path] | None = None

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
        micro = list(islice(batches, self.config.engine.accumulation))
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
        state = {"rng": _gather_rng(self.world)}
        stream = self.loader.state() | {"manifests": self.loader.manifest_hash}
        keep = self.config.keep_last
        folder = checkpoint.save(self.root, step, stream, lambda f: self.engine.save(f, state), self.world, keep)
        self.saved = (step, folder)

    def _release(self, step: int) -> None:
        if self.world.is_main and self.saved is not None:
            write_release(self.config, self.engine, self.loader, step, self.saved[1])
        barrier(self.world)

    def _finish(self, step: int) -> None:
        release = self.config.run_dir / "model.safetensors"
        if self.world.is_main and not release.exists():  # killed between the last checkpoint and its release
            self.saved = self.saved or (step, checkpoint.newest(self.root, _silent) or self.root)
            write_release(self.config, self.engine, self.loader, step, self.saved[1])
        self.gallery.hang(self.engine, step)
        self.tracker.say(f"done: {step} steps; weights in {release}")


def _refuse_another_run(config: PretrainConfig) -> None:
    """UserError if the run folder holds checkpoints of a configuration that computes something else."""
    path = config.run_dir / "config.yaml"
    if not path.exists() or not any((config.run_dir / "checkpoints").glob("step-*")):
        return
    mine, theirs = config.model_dump(mode="json"), read_yaml(path)
    for key in sorted(set(mine) - FREE_TO_CHANGE):
        if _comparable(mine[key]) != _comparable(theirs.get(key)):
            raise UserError(
                f"{config.run_dir} holds a run with another '{key}' ({theirs.get(key)}); "
                "choose a new run_dir or restore the old value"
            )


def _claim(config: PretrainConfig, world: World) -> None:
    """Write the resolved configuration into the run folder."""
    if not world.is_main:
        return
    path = config.run_dir / "config.yaml"
    try:
        config.run_dir.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write to the run folder {config.run_dir}: {error.strerror}") from error


def _comparable(value: Any) -> Any:
    """Workers and the ring change the speed of the stream, never its content; a folder may have moved."""
    if isinstance(value, dict):
        return {k: _comparable(v) for k, v in value.items() if k not in ("workers", "ring", "path")}
    if isinstance(value, list):
        return [_comparable(item) for item in value]
    return value


def _gather_rng(world: World) -> list[dict[str, Any]]:
    mine = {"torch": torch.get_rng_state()}
    if world.device.type == "cuda":
        mine["cuda"] = torch.cuda.get_rng_state()
    if world.size == 1:
        return [mine]
    everyone: list[Any] = [None] * world.size
    torch.distributed.all_gather_object(everyone, mine)
    return everyone


def _restore_rng(states: list[dict[str, Any]], world: World) -> None:
    state = states[world.rank % len(states)]  # at another world size no rank has a state of its own to go back to
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _memory_gib(world: World) -> float:
    if world.device.type == "cuda":
        return round(torch.cuda.max_memory_allocated() / 2**30, 3)
    import resource

    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)


def _silent(text: str) -> None:
    """Other ranks leave the talking to the first."""
