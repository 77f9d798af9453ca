"""One thread, since the machine that runs the suite is shared; and a piece of python as several ranks over gloo."""

import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

Ranks = Callable[..., str]

EPILOGUE = """
import os, sys
from scanforge.pretrain.distributed import leave
leave(world)
sys.stdout.flush()
os._exit(0)  # gloo's threads may abort the interpreter's own exit
"""


@pytest.fixture(autouse=True)
def one_thread_and_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def ranks(tmp_path: Path) -> Ranks:
    """`ranks(code, world_size)`: run `code`, which must define `world`, on every rank; gives what rank 0 printed."""

    def run(code: str, world_size: int = 1, **environment: str) -> str:
        script = tmp_path / "ranks.py"
        script.write_text(textwrap.dedent(code) + EPILOGUE)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        processes = []
        for rank in range(world_size):
            env = os.environ | {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port, "PYTHONSAFEPATH": "1", "TMP_PATH": str(tmp_path), **environment,
            }  # fmt: skip
            processes.append(
                subprocess.Popen(
                    [sys.executable, script], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
                )
            )
        outputs = [process.communicate(timeout=180) for process in processes]
        for process, (_, errors) in zip(processes, outputs, strict=True):
            assert process.returncode == 0, errors[-3000:]
        return outputs[0][0]

    return run
