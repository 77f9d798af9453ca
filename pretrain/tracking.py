"""Where a run's numbers go: `metrics.jsonl` always, wandb when asked for, a progress bar or plain lines for people."""

import json
import os
import secrets
import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from scanforge.configs.base import Config


class WandbConfig(Config):
    """wandb is off unless asked for; 'offline' writes below the run folder and needs no network."""

    mode: Literal["off", "offline", "online"] = "off"
    project: str = "scanforge"
    name: str | None = None

    @field_validator("mode", mode="before")
    @classmethod
    def _yaml_off(cls, value: object) -> object:
        return "off" if value is False else value  # YAML reads a bare `off` as false


class MetricsFile:
    """One JSON object a line; a continued run drops what it had logged past the step it continues from."""

    def __init__(self, path: Path, resumed_step: int) -> None:
        kept = []
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    record = json.loads(line)
                except ValueError:
                    continue  # the half line of a killed writer
                if record["step"] <= resumed_step:
                    kept.append(line)
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(line + "\n" for line in kept))
        os.replace(temporary, path)
        self._handle = open(path, "a", buffering=1)  # noqa: SIM115 - open for as long as the run

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; NaN becomes null so that every reader can parse the line."""
        clean = {k: None if isinstance(v, float) and v != v else v for k, v in record.items()}
        self._handle.write(json.dumps(clean) + "\n")

    def close(self) -> None:
        """Flush and close."""
        self._handle.close()


class Wandb:
    """A thin shell: a network that goes away, or wandb failing, never ends a run."""

    def __init__(self, config: WandbConfig, run_dir: Path, settings: dict[str, Any]) -> None:
        self._run: Any = None
        if config.mode == "off":
            return
        try:
            import wandb

            id_file = run_dir / "wandb_id.txt"
            identity = id_file.read_text().strip() if id_file.exists() else secrets.token_hex(4)
            id_file.write_text(identity)
            self._run = wandb.init(
                project=config.project, name=config.name, id=identity, resume="allow", mode=config.mode,
                dir=str(run_dir), config=settings, settings=wandb.Settings(silent=True),
            )  # fmt: skip
        except Exception as error:
            print(f"wandb is not available ({error}); the run goes on without it", file=sys.stderr)

    def log(self, record: dict[str, Any], picture: Path | None = None) -> None:
        """Send one record, and a picture if there is one."""
        if self._run is None:
            return
        try:
            import wandb

            extra = {"reconstruction": wandb.Image(str(picture))} if picture else {}
            self._run.log({**record, **extra}, step=record["step"])
        except Exception as error:
            print(f"wandb log failed ({error}); the run goes on", file=sys.stderr)

    def close(self) -> None:
        """Finish the wandb run."""
        if self._run is not None:
            self._run.finish()


class Display:
    """A bar on a terminal; in a log file a plain line every twentieth of the run."""

    def __init__(self, steps: int, start: int, what: str) -> None:
        self._console = Console(stderr=True)
        self._steps, self._every = steps, max(1, steps // 20)
        self._what = what
        self._bar: Progress | None = None
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"), console=self._console,
            )  # fmt: skip
            self._bar.start()
            self._task = self._bar.add_task(what, total=steps, completed=start, note="")

    def update(self, step: int, note: str) -> None:
        """`step` steps are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, note=note)
        elif step % self._every == 0 or step == self._steps:
            self._console.print(f"{self._what} {step}/{self._steps} {note}", highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """One line, above the bar."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()


class Tracker:
    """Metrics file, wandb and display as one; on other ranks than the first it does nothing."""

    def __init__(self, run_dir: Path, config: WandbConfig, settings: dict[str, Any], resumed: int, steps: int,
                 active: bool) -> None:  # fmt: skip
        self._active = active
        if active:
            self._file = MetricsFile(run_dir / "metrics.jsonl", resumed)
            self._wandb = Wandb(config, run_dir, settings)
            self._display = Display(steps, resumed, "pre-training")

    def log(self, record: dict[str, Any], write: bool, picture: Path | None = None) -> None:
        """Show the record; store it where `write` says so."""
        if not self._active:
            return
        if write:
            self._file.write(record)
            self._wandb.log(record, picture)
        self._display.update(record["step"], f"loss {record['loss']:.4f}  {record['samples_per_second']:.1f} scans/s")

    def say(self, text: str) -> None:
        """One line for the user."""
        if self._active:
            self._display.say(text)

    def close(self) -> None:
        """Close all."""
        if self._active:
            self._display.close()
            self._file.close()
            self._wandb.close()
