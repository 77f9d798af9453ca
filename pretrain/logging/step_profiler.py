"""torch's profiler around some steps of a run."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from scanfoundry.pretrain.config.profile import ProfileConfig
from scanfoundry.pretrain.distributed.world import World

FOLDER = "profile"


class StepProfiler:
    """Writes a trace of the steps that `config` asks for; on other ranks than the first, and without one, nothing.

    Args:
        run_dir: of the run.
        log: takes one line for people.
        done: the last step that was finished before.
    """

    def __init__(
        self, config: ProfileConfig | None, run_dir: Path, world: World, log: Callable[[str], None], done: int
    ) -> None:
        self._profile: profile | None = None
        if config is None or not world.is_main:
            return
        self._folder, self._log = run_dir / FOLDER, log
        self._first, self._last = done + config.start + 1, done + config.start + config.steps
        activities = [ProfilerActivity.CPU]
        if world.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(
            activities=activities,
            schedule=schedule(wait=config.start - 1, warmup=1, active=config.steps, repeat=1),
            on_trace_ready=self._write,
            record_shapes=True,
        )
        self._profile.start()

    def step(self, step: int) -> None:
        """A step is finished."""
        if self._profile is None:
            return
        self._profile.step()
        if step >= self._last:
            self.close()

    def close(self) -> None:
        """End; of a run that stops within the traced steps, those that were finished are written."""
        running, self._profile = self._profile, None
        if running is not None:
            running.stop()

    def _write(self, finished: profile) -> None:
        self._folder.mkdir(exist_ok=True)
        path = self._folder / f"steps-{self._first:08d}-{self._last:08d}.json.gz"
        finished.export_chrome_trace(str(path))
        self._log(f"a trace of steps {self._first} to {self._last} is in {path}")


def part(name: str) -> torch.profiler.record_function:
    """A context that has a name in the trace; without a profiler it costs a microsecond."""
    return torch.profiler.record_function(f"scanfoundry: {name}")
