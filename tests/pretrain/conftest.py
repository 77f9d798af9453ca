"""One thread, since the machine that runs the suite is shared; and a piece of python as several ranks over gloo."""

import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import warm

from scanfoundry.backbones import vit

Ranks = Callable[..., str]
TWO_BLOCKS = (192, 2, 3)  # width, depth, heads

PROLOGUE = """
import os
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
def shallow_vit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ViT-Ti has two blocks, here and in warm processes.

    What engines, checkpoints and runs promise does not depend on the depth, but most of what a small run costs does:
    at ZeRO 3 DeepSpeed's hooks take milliseconds for each module.
    """
    monkeypatch.setitem(vit.WIDTH_DEPTH_HEADS, "Ti", TWO_BLOCKS)
    monkeypatch.setenv(warm.FIRST, f"from scanfoundry.backbones import vit; vit.WIDTH_DEPTH_HEADS['Ti'] = {TWO_BLOCKS}")


@pytest.fixture
def ranks(tmp_path: Path) -> Ranks:
    """`ranks(code, world_size)`: run `code`, which must define `world`, on every rank; gives what rank 0 printed.

    With `fresh=True` each rank is a new process of python: for its memory, and for what is read as a process starts.
    """

    def run(code: str, world_size: int = 1, fresh: bool = False, **environment: str) -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        start: Any = subprocess.Popen if fresh else warm.Popen
        processes = []
        outs = [tmp_path / f"rank{rank}" for rank in range(world_size)]
        for rank, out in enumerate(outs):
            env = os.environ | {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port, "PYTHONSAFEPATH": "1", "TMP_PATH": str(tmp_path), **environment,
            }  # fmt: skip
            out.with_suffix(".py").write_text(PROLOGUE.format(out=str(out)) + textwrap.dedent(code) + EPILOGUE)
            processes.append(start([sys.executable, out.with_suffix(".py")], env=env))
        try:
            codes = [process.wait(180) for process in processes]
        finally:
            for process in processes:
                process.kill()
        for out, code_of in zip(outs, codes, strict=True):
            assert code_of == 0, (code_of, out.with_suffix(".stderr").read_text()[-3000:])
        return outs[0].with_suffix(".stdout").read_text()

    return run
