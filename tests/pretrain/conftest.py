"""One thread, since the machine that runs the suite is shared; and a piece of python as several ranks over gloo."""

import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

Ranks = Callable[..., str]

# Loading torch, DeepSpeed and timm is most of what a rank of these small runs costs: one process loads them and forks.
# monai_parts makes torchvision loadable, which timm imports.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "deepspeed",
        "scanfoundry.pretrain.training.loop",
        "scanfoundry.finetune.monai_parts",
        "timm.models.vision_transformer",
    ]
)

PROLOGUE = """
import os
os.environ.clear()
os.environ.update({environment!r})
for _number, _name in ((1, "stdout"), (2, "stderr")):
    os.dup2(os.open({out!r} + "." + _name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), _number)
"""
EPILOGUE = """
import os, sys
from scanfoundry.pretrain.distributed.world import leave
leave(world)
sys.stdout.flush()
os._exit(0)  # gloo's threads may abort the interpreter's own exit
"""


@pytest.fixture(autouse=True)
def one_thread_and_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ranks:
    """`ranks(code, world_size)`: run `code`, which must define `world`, on every rank; gives what rank 0 printed.

    With `fresh=True` each rank is a new process of python: for its memory, and for what is read as a process starts.
    """
    with monkeypatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")  # DeepSpeed looks for a GPU as it is imported
        multiprocessing.forkserver.ensure_running()

    def run(code: str, world_size: int = 1, fresh: bool = False, **environment: str) -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        outs = [tmp_path / f"rank{rank}" for rank in range(world_size)]
        for rank, out in enumerate(outs):
            env = os.environ | {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port, "PYTHONSAFEPATH": "1", "TMP_PATH": str(tmp_path), **environment,
            }  # fmt: skip
            prologue = PROLOGUE.format(environment=dict(env), out=str(out))
            out.with_suffix(".py").write_text(prologue + textwrap.dedent(code) + EPILOGUE)
        scripts = [str(out.with_suffix(".py")) for out in outs]
        codes = started(scripts, environment) if fresh else forked(scripts)
        for out, code_of in zip(outs, codes, strict=True):
            assert code_of == 0, (code_of, out.with_suffix(".stderr").read_text()[-3000:])
        return outs[0].with_suffix(".stdout").read_text()

    return run


def forked(scripts: list[str]) -> list[int | None]:
    """Exit codes of the scripts, run side by side; None for one that did not end."""
    processes = [FORKS.Process(target=runpy.run_path, args=(s,), kwargs={"run_name": "__main__"}) for s in scripts]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=180)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def started(scripts: list[str], environment: dict[str, str]) -> list[int]:
    """The same, each in a python of its own."""
    processes = [subprocess.Popen([sys.executable, script], env=os.environ | environment) for script in scripts]
    return [process.wait(timeout=180) for process in processes]
