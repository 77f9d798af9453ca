"""How the ranks of a run find each other.

Three ways, in this order: one process needs nobody; a launcher names a file (SCANFOUNDRY_RENDEZVOUS) through which rank
0 says where it listens; or MASTER_ADDR and MASTER_PORT are given, as torchrun does. The file has no race for a port:
rank 0 lets the system choose a free one and holds it before anybody hears of it.
"""

import contextlib
import ipaddress
import json
import os
import socket
import time
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.files import write_text

FILE = "SCANFOUNDRY_RENDEZVOUS"  # the file of this start; another start of the same job has another one
DEADLINE_S = 600.0  # nodes start minutes apart where a file system is slow
CONNECT_S = 3.0
NAME = "scanfoundry_rendezvous"  # a key of the store: whose it is


def form_group(backend: str, rank: int, size: int, timeout: timedelta) -> None:
    """Initialise the default process group of `size` ranks.

    Raises:
        UserError: MASTER_PORT is taken or the address is not given.
        TimeoutError: rank 0 never came.
    """
    if size == 1:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    elif os.environ.get(FILE):
        store = store_through_file(Path(os.environ[FILE]), rank, size)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    else:
        _by_address(backend, size, timeout)


def store_through_file(path: Path, rank: int, size: int, deadline_s: float = DEADLINE_S) -> dist.TCPStore:
    """The store that rank 0 opens on a free port and publishes at `path`; the others wait for it up to `deadline_s`."""
    limit = timedelta(seconds=deadline_s)
    if rank == 0:
        store = dist.TCPStore("localhost", 0, size, is_master=True, timeout=limit, wait_for_workers=False)
        store.set(NAME, str(path))
        publish(path, store.port)
        return store
    host, port = find(path, deadline_s)
    store = dist.TCPStore(host, port, size, is_master=False, timeout=limit, wait_for_workers=False)
    if store.get(NAME).decode() != str(path):
        raise RuntimeError(f"{host}:{port} belongs to another run, {store.get(NAME).decode()}")
    return store


def publish(path: Path, port: int) -> None:
    """Write where this process listens: the names and addresses that others may know it by, likeliest first.

    A loopback address, to which many hosts resolve their own name, would lead every other host to itself.
    """
    name = socket.gethostname()
    hosts = [os.environ.get("MASTER_ADDR", ""), name]
    with contextlib.suppress(OSError):  # a host may not resolve itself; others may
        found = [str(entry[4][0]) for entry in socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)]
        hosts += [host for host in found if not ipaddress.ip_address(host.split("%")[0]).is_loopback]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"hosts": list(dict.fromkeys(filter(None, hosts))), "port": port}))


def find(path: Path, deadline_s: float) -> tuple[str, int]:
    """Host and port at which rank 0 answers; the file is read anew at each attempt, since it may be replaced."""
    limit, heard = time.monotonic() + deadline_s, "has not published where it listens"
    while time.monotonic() < limit:
        try:
            announced = json.loads(path.read_text())
        except (OSError, ValueError):
            time.sleep(0.05)
            continue
        for host in announced["hosts"]:
            try:
                socket.create_connection((host, announced["port"]), CONNECT_S).close()
                return host, announced["port"]
            except OSError as error:
                heard = f"does not answer at {host}:{announced['port']} ({error.strerror or error})"
        time.sleep(0.2)
    raise TimeoutError(f"rank 0 {heard} after {deadline_s:g} s")


def _by_address(backend: str, size: int, timeout: timedelta) -> None:
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UserError(
            f"WORLD_SIZE is {size}, but {' and '.join(missing)} is not set; start the processes with "
            "`scanfoundry launch` or torchrun"
        )
    try:
        dist.init_process_group(backend, timeout=timeout)
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise UserError(
            f"MASTER_PORT {os.environ['MASTER_PORT']} is taken by another program on this machine; "
            "choose another one, or use `scanfoundry launch`, which needs none"
        ) from error
