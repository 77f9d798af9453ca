"""Ranks meet through a file, without a port that anybody chose; or by an address, with clear errors."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest
import warm

from scanfoundry.pretrain.distributed import rendezvous

RANK = """
import sys, torch
import torch.distributed as dist
from scanfoundry.pretrain.distributed.world import join, leave
from scanfoundry.configs.errors import UserError
try:
    world = join("cpu", 1, 30)
except UserError as error:
    print(error)
    sys.exit(2)
total = torch.tensor(float(world.rank + 1))
dist.all_reduce(total)
print(world.rank, world.size, total.item(), flush=True)
leave(world)
import os; os._exit(0)
"""


def start(rank: int, size: int, **environment: str) -> warm.Popen:
    env = {k: v for k, v in os.environ.items() if not k.startswith("MASTER_")}
    env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), **environment}
    return warm.Popen([sys.executable, "-c", RANK], env=env, text=True, stdout=subprocess.PIPE)


def test_ranks_meet_through_a_file_whoever_comes_first_and_stale_files_are_passed_over(tmp_path):
    (tmp_path / "12-0.json").write_text(json.dumps({"hosts": ["127.0.0.1"], "port": 1}))  # of the life before
    path = tmp_path / "12-1.json"
    path.write_text(json.dumps({"hosts": ["localhost"], "port": 1}))  # even one of this name: nobody answers there
    late = [start(rank, 3, SCANFOUNDRY_RENDEZVOUS=str(path)) for rank in (2, 1)]
    first = start(0, 3, SCANFOUNDRY_RENDEZVOUS=str(path))
    said = [process.communicate(timeout=120)[0].split() for process in (first, *reversed(late))]
    assert said == [[str(rank), "3", "6.0"] for rank in range(3)]


def test_one_process_opens_no_port_and_believes_no_address_of_a_shell():
    process = start(0, 1, MASTER_ADDR="203.0.113.1", MASTER_PORT="1")
    assert process.communicate(timeout=60)[0].split() == ["0", "1", "1.0"]


def test_a_port_in_use_and_a_missing_address_are_users_mistakes():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        process = start(0, 2, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        said = process.communicate(timeout=60)[0]
    assert process.returncode == 2
    assert f"MASTER_PORT {port} is taken" in said
    process = start(0, 2, MASTER_ADDR="127.0.0.1")
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 2
    assert "MASTER_PORT is not set" in said


def test_waiting_for_rank_0_has_an_end_that_says_what_it_waited_for(tmp_path):
    with pytest.raises(TimeoutError, match="has not published"):
        rendezvous.find(tmp_path / "none.json", 0.3)
    (tmp_path / "dead.json").write_text(json.dumps({"hosts": ["127.0.0.1"], "port": 1}))
    with pytest.raises(TimeoutError, match=r"does not answer at 127\.0\.0\.1:1"):
        rendezvous.find(tmp_path / "dead.json", 0.5)


def test_names_that_do_not_resolve_are_passed_over(tmp_path, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "no-such-host.invalid")
    with socket.socket() as server:
        server.bind(("", 0))
        server.listen()
        port = server.getsockname()[1]
        path = tmp_path / "deep" / "12-0.json"
        threading.Timer(0.3, rendezvous.publish, (path, port)).start()
        host, found = rendezvous.find(path, 20)
    assert found == port
    assert host != "no-such-host.invalid"


def test_a_loopback_address_is_told_to_nobody_and_another_runs_store_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "node-7")
    entries = [(2, 1, 6, "", (host, 0)) for host in ("127.0.1.1", "10.1.2.3")] + [(10, 1, 6, "", ("::1", 0, 0, 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: entries)
    rendezvous.publish(tmp_path / "a.json", 5)
    monkeypatch.undo()
    hosts = json.loads((tmp_path / "a.json").read_text())["hosts"]
    assert hosts == ["node-7", socket.gethostname(), "10.1.2.3"]
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    mine = rendezvous.store_through_file(tmp_path / "12-0.json", 0, 2)
    (tmp_path / "13-0.json").write_text(json.dumps({"hosts": ["127.0.0.1"], "port": mine.port}))
    with pytest.raises(RuntimeError, match="another run"):
        rendezvous.store_through_file(tmp_path / "13-0.json", 1, 2)
    assert rendezvous.store_through_file(tmp_path / "12-0.json", 1, 2).port == mine.port


EARLY = """
import os, signal, sys
from scanfoundry.pretrain.distributed.preemption import StopRequest
assert "torch" not in sys.modules  # a job installs its handlers before the seconds that torch takes
with StopRequest() as stop:
    os.kill(os.getpid(), signal.SIGUSR2)
    os.kill(os.getpid(), signal.SIGTERM)
    from scanfoundry.pretrain.distributed.world import join, leave
    world = join("cpu", 1)
    assert stop.agreed(world)
    print(stop.signal)
"""


def test_a_signal_before_torch_is_there_is_kept():
    done = subprocess.run([sys.executable, "-c", EARLY], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == [str(int(signal.SIGTERM))], done.stderr
