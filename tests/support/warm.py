"""Processes that start at once: forked from one that has imported torch, DeepSpeed, MONAI and the packages.

A new process of python takes four to ten seconds to import what `scanfoundry pretrain` and `finetune` need, most of
what their small runs cost. `warm.Popen` and `warm.run` take the words of `subprocess.Popen` and `subprocess.run` and
give a process with a process id, an environment, a folder and streams of its own, to be killed as any other. What is
tested of a new process itself (what it imports, how fast it starts, how much memory it takes, what it reads from the
environment as libraries load) needs `subprocess`; so does what needs a GPU, since a warm process has none.
"""

import atexit
import fcntl
import gc
import multiprocessing
import multiprocessing.forkserver
import os
import random
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SCANFOUNDRY = str(Path(sys.executable).with_name("scanfoundry"))

FIRST = "WARM_FIRST"  # the variable of code that a warm process runs before anything else
ASIDE = 500  # descriptors from here on are nobody's
FORKS = multiprocessing.get_context("forkserver")
# monai_parts makes torchvision loadable, which timm imports: it stands before.
PRELOAD = [
    "deepspeed",
    "scanfoundry.finetune.monai_parts",
    "timm.models.vision_transformer",
    "scanfoundry.pretrain.training.loop",
    "scanfoundry.finetune.run_study",
    "scanfoundry.datasets.shards.build",
    "scanfoundry.datasets.shards.shard_worker",
    "scanfoundry.datasets.workers.worker",
    "scanfoundry.launch.cli.main",
    # What an engine imports only as it is made, at ZeRO 3 a thousand modules of torch's compiler.
    "deepspeed.ops.op_builder.all_ops",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "torch._inductor.compile_fx",
    # What commands import only as they need it.
    "scanfoundry.finetune.tasks.segmentation",
    "scanfoundry.finetune.tasks.classification",
    "scanfoundry.finetune.tasks.regression",
    "scanfoundry.finetune.tasks.detection",
    "scanfoundry.launch.cluster.submit",
    "submitit",
    "sklearn.linear_model",
]


def ensure_server() -> None:
    """Start the process that loads the packages and forks; once in a test process."""
    ours = [name.split(".")[1:] for name in PRELOAD if name.startswith("scanfoundry.")]
    missing = [words for words in ours if not ROOT.joinpath(*words).with_suffix(".py").is_file()]
    assert not missing, f"no such modules to load in advance, which would only be slow: {missing}"
    FORKS.set_forkserver_preload(PRELOAD)
    before = os.environ.get("DS_ACCELERATOR")
    os.environ["DS_ACCELERATOR"] = "cpu"  # DeepSpeed looks for a GPU as it is imported
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["DS_ACCELERATOR"]
        else:
            os.environ["DS_ACCELERATOR"] = before


class Popen:
    """What the tests use of `subprocess.Popen`, always in text, for `[SCANFOUNDRY, ...]`, `[python, "-c", code, ...]`,
    `[python, "-m", module, ...]` and `[python, script, ...]`.
    """

    def __init__(
        self,
        command: list[str | Path],
        *,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        env: dict[str, str] | None = None,
        cwd: str | Path | None = None,
        start_new_session: bool = False,
        pass_fds: Iterable[int] = (),
        text: bool = True,
    ) -> None:
        assert text, "the streams are text"
        self.args = [str(word) for word in command]
        environment = dict(os.environ if env is None else env)
        paths = [each.get("PYTHONPATH", "") for each in (environment, os.environ)]
        assert not paths[0] or paths[0] == paths[1], "the modules of a warm process are imported already"
        ensure_server()
        pipes = [_pipe(number, given) for number, given in enumerate((stdin, stdout, stderr))]
        start = _Start(
            words=self.args,
            descriptors={number: _Sent(theirs) for number, (theirs, _) in enumerate(pipes)}
            | {number: _Sent(number) for number in pass_fds},
            environment=environment,
            folder=str(cwd or Path.cwd()),
            new_session=start_new_session,
            blocked=signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        )
        self._process = FORKS.Process(target=start.live)
        self._process.start()
        for given, (theirs, _) in zip((stdin, stdout, stderr), pipes, strict=True):
            if given is not None:
                os.close(theirs)
        self.stdin, self.stdout, self.stderr = (
            ours if ours is None else os.fdopen(ours, "w" if number == 0 else "r", buffering=1)
            for number, (_, ours) in enumerate(pipes)
        )
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str | None, str | None]:
        """Close its input, read its output to the end, wait for its end."""
        if self.stdin is not None:
            self.stdin.close()
        read: dict[int, str] = {}
        readers = [
            threading.Thread(target=lambda number=number, stream=stream: read.update({number: stream.read()}))
            for number, stream in enumerate((self.stdout, self.stderr))
            if stream is not None
        ]
        for reader in readers:
            reader.daemon = True
            reader.start()
        for reader in readers:
            reader.join(timeout)
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout)
        self.wait(timeout)
        return read.get(0), read.get(1)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(
    command: list[str | Path],
    *,
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    **given: Any,
) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run`; a process that takes longer than `timeout` is killed."""
    if capture_output:
        given |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = Popen(command, **given)
    try:
        out, errors = process.communicate(timeout)
    except BaseException:
        process.kill()
        raise
    if check and process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args, out, errors)
    return subprocess.CompletedProcess(process.args, process.returncode, out, errors)


class _Sent:
    """A descriptor of this process on its way: what the child unpickles has `detach`, which gives the child's own."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _same, (DupFd(self.number),)  # which may only be called as the child starts


def _same(value: Any) -> Any:
    return value


def _pipe(number: int, given: int | None) -> tuple[int, int | None]:
    """The child's end and ours of one of the streams 0, 1, 2."""
    if given is None:
        return number, None
    if given == subprocess.DEVNULL:
        return os.open(os.devnull, os.O_RDWR), None
    assert given == subprocess.PIPE, "a stream is inherited, a pipe or the null device"
    reading, writing = os.pipe()
    return (reading, writing) if number == 0 else (writing, reading)


@dataclass(frozen=True)
class _Start:
    """What a new program would be given, made true in the forked process."""

    words: list[str]
    descriptors: dict[int, Any]
    environment: dict[str, str]
    folder: str
    new_session: bool
    blocked: set[int]

    def live(self) -> None:
        """In the child: its whole life."""
        gc.freeze()  # what was imported stays: looking through it would copy its pages
        if self.new_session:
            os.setsid()
        self._place_descriptors()
        sys.stdin = os.fdopen(0, closefd=False)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
        os.environ.clear()
        os.environ.update(self.environment | {"CUDA_VISIBLE_DEVICES": ""})  # as DeepSpeed was told at its import
        os.chdir(self.folder)
        random.seed()  # every fork would draw the same numbers
        tempfile.tempdir = None  # the environment decides anew
        signal.pthread_sigmask(signal.SIG_SETMASK, self.blocked)
        try:
            exec(self.environment.get(FIRST, ""), {})
            _execute(self.words)
        finally:
            atexit._run_exitfuncs()

    def _place_descriptors(self) -> None:
        """Each at its number, out of the way of the others and of the one that multiprocessing itself goes on using."""
        aside = {number: fcntl.fcntl(sent.detach(), fcntl.F_DUPFD, ASIDE) for number, sent in self.descriptors.items()}
        tracker = resource_tracker._resource_tracker
        if tracker._fd in aside:
            tracker._fd = fcntl.fcntl(tracker._fd, fcntl.F_DUPFD_CLOEXEC, ASIDE)
        for number, held in aside.items():
            os.dup2(held, number)
            os.close(held)


def _execute(words: list[str]) -> None:
    program, *arguments = words
    if program == SCANFOUNDRY:
        from scanfoundry.launch.cli.main import main

        sys.argv = words
        main()
    assert program == sys.executable, f"only scanfoundry and python start warm, not {program}"
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        return
    code = arguments[1] if arguments[0] == "-c" else Path(arguments[0]).read_text()
    sys.argv = ["-c", *arguments[2:]] if arguments[0] == "-c" else arguments
    names = sys.modules["__main__"].__dict__
    names["__name__"] = "__main__"
    exec(compile(code, "<string>" if arguments[0] == "-c" else arguments[0], "exec"), names)
