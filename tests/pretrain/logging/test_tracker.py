"""wandb beside a run: offline segments hold every step, and no network, server or death of it holds up the run."""

import gzip
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image
from wandb.proto import wandb_internal_pb2

from scanfoundry.pretrain.config.wandb import WandbConfig
from scanfoundry.pretrain.logging.tracker import Tracker
from scanfoundry.pretrain.logging.wandb_process import without_secrets

KEY = "0123456789abcdef0123456789abcdef01234567"
AT_ONCE = 0.5  # seconds; a call that waited for wandb to start would take more
Said = list[str]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("HOME", str(tmp_path))


def tracker(run_dir: Path, said: Said, resumed: int = 0, settings: dict | None = None, **config) -> Tracker:
    run_dir.mkdir(exist_ok=True)
    found = Tracker(run_dir, WandbConfig(**config), settings or {}, resumed, 100, True)
    found._display.info = said.append
    return found


def step(tracker: Tracker, number: int, picture: Path | None = None) -> float:
    """Log one; the seconds that it took."""
    began = time.perf_counter()
    tracker.log({"step": number, "loss": 1 / number, "samples_per_second": 2.0}, True, picture)
    return time.perf_counter() - began


def process(tracker: Tracker) -> subprocess.Popen:
    return tracker._wandb._process


def steps_until(tracker: Tracker, there: Callable[[], bool], first: int = 1, seconds: float = 60) -> int:
    """Log a step each tenth of a second until `there`; the last one's number."""
    for number in range(first, first + int(10 * seconds)):
        assert step(tracker, number) < AT_ONCE
        if there():
            return number
        time.sleep(0.1)
    raise AssertionError("it never came")


def records(path: Path) -> Iterator[bytes]:
    """The records of a .wandb file, which is LevelDB's log format with a header of 7 bytes."""
    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := -at % 32768) and left < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b""


def segments(run_dir: Path) -> list[dict]:
    """Of each offline segment in order: the run's id, its settings, and its history by step."""
    found = []
    for path in sorted((run_dir / "wandb").glob("offline-run-*/*.wandb")):
        segment: dict = {"id": None, "config": {}, "history": {}}
        for payload in records(path):
            record = wandb_internal_pb2.Record.FromString(payload)
            if record.HasField("run"):
                segment["id"] = record.run.run_id
                segment["config"] = {item.key: json.loads(item.value_json) for item in record.run.config.update}
            elif record.HasField("history"):
                items = {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
                segment["history"][items["step"]] = items
        found.append(segment)
    return found


def logged(run_dir: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_offline_segments_of_one_run_hold_every_step_and_no_secret(tmp_path):
    run_dir, said = tmp_path / "run", []
    (run_dir / "pictures").mkdir(parents=True)
    Image.new("L", (8, 8)).save(run_dir / "pictures" / "one.png")
    settings = {"data": [{"path": f"s3://me:{KEY}@host/x?sig={KEY}"}], "lr": 1e-3}
    first = tracker(run_dir, said, settings=settings, mode="offline")
    for number in (1, 2, 3, 4):
        step(first, number, run_dir / "pictures" / "one.png" if number == 2 else None)
    first.close()
    second = tracker(run_dir, said, resumed=2, settings=settings, mode="offline")  # step 3 and 4 come again
    for number in (3, 4, 5):
        step(second, number)
    second.close()
    assert said == []
    one, other = segments(run_dir)
    assert one["id"] == other["id"] == (run_dir / "wandb_id.txt").read_text()
    assert one["config"]["data"] == [{"path": "s3://host/x"}]
    assert one["config"]["lr"] == 1e-3
    assert list(one["history"]) == [1, 2, 3, 4]
    assert list(other["history"]) == [1, 2, 3, 4, 5]  # the newest segment is the whole run
    assert one["history"][3]["loss"] == 1 / 3
    assert one["history"][3]["_step"] == 3
    assert one["history"][2]["reconstruction/_type"] == "image-file"
    assert logged(run_dir) == [1, 2, 3, 4, 5]
    files = [path for path in run_dir.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_neither_the_machine_nor_its_paths_nor_its_user_are_in_what_leaves_the_site(tmp_path, monkeypatch):
    """In the record of the run, and in the files that go with it; the logs beside it stay here."""
    monkeypatch.setenv("USER", "zwiebelmann")
    monkeypatch.setenv("LOGNAME", "zwiebelmann")
    run_dir, said = tmp_path / "ward seven" / "run", []
    run_dir.mkdir(parents=True)
    settings = {
        "run_dir": str(run_dir),
        "init": "../eulenspiegel/spark",
        "cache": "file:///eulenspiegel/cache",
        "share": "C:\\eulenspiegel\\mr",
        "home": "~/eulenspiegel/",
        "data": {"sources": [{"path": str(tmp_path / "ward seven" / "mr"), "name": "mr"}], "crop": [1, 2]},
    }
    run = tracker(run_dir, said, settings=settings, mode="offline")
    step(run, 1)
    run.close()
    assert said == []
    (segment,) = segments(run_dir)
    shown = {"run_dir": "run", "init": "spark", "cache": "cache", "share": "mr", "home": "eulenspiegel"}
    assert {key: segment["config"][key] for key in shown} == shown
    assert segment["config"]["data"] == {"sources": [{"path": "mr", "name": "mr"}], "crop": [1, 2]}
    (record,) = (run_dir / "wandb").glob("offline-run-*/*.wandb")
    hosts, kinds = set(), set()
    for payload in records(record):
        found = wandb_internal_pb2.Record.FromString(payload)
        kinds.add(found.WhichOneof("record_type"))
        hosts.add(found.run.host)
    assert hosts == {""}
    assert {"run", "history"} <= kinds
    assert "environment" not in kinds  # host, user, command line, working folder, executable, repository
    leaving = [record, *(path for path in record.parent.glob("files/**/*") if path.is_file())]
    content = b"".join(path.read_bytes() for path in leaving)
    telling = [
        "ward seven",
        "eulenspiegel/",
        "zwiebelmann",
        str(tmp_path),
        sys.executable,
        os.getcwd(),
        str(Path.home()),
    ]
    telling += [socket.gethostname()] if len(socket.gethostname()) > 4 else []
    assert [each for each in telling if each.encode() in content] == []
    assert not list(record.parent.glob("files/wandb-metadata.json"))


@pytest.fixture
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server at WANDB_BASE_URL: one that refuses, hangs, or answers nonsense or errors."""
    answers = {"hangs": None, "nonsense": b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n<nonsense/>",
               "errors": b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n"}  # fmt: skip
    listening = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listening.getsockname()[1]}")
    if request.param == "refuses":
        listening.close()
        yield request.param
        return
    held: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                held.append(listening.accept()[0])
                if answers[request.param] is not None:
                    held[-1].recv(1 << 16)
                    held[-1].sendall(answers[request.param])
                    held[-1].close()
            except OSError:
                if listening.fileno() < 0:
                    return

    threading.Thread(target=serve, daemon=True).start()
    yield request.param
    listening.close()
    for each in held:
        each.close()


@pytest.mark.slow
@pytest.mark.parametrize("server", ["refuses", "hangs", "nonsense", "errors"], indirect=True)
def test_without_a_connection_it_becomes_offline_with_one_line_and_nobody_waits(tmp_path, server):
    run_dir, said = tmp_path / "run", []
    began = time.perf_counter()
    run = tracker(run_dir, said, mode="online", start_s=2, finish_s=5)
    assert time.perf_counter() - began < AT_ONCE
    last = steps_until(run, lambda: run._wandb._job["mode"] == "offline" and run._wandb._ready)
    began = time.perf_counter()
    run.close()
    assert time.perf_counter() - began < 10
    (line,) = said
    assert "wandb is not online" in line
    assert "wandb sync" in line
    assert KEY not in line
    (segment,) = segments(run_dir)
    assert list(segment["history"]) == list(range(1, last + 1)) == logged(run_dir)
    assert not [path for path in run_dir.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


@pytest.mark.slow
@pytest.mark.parametrize("server", ["hangs"], indirect=True)
def test_a_run_that_ends_before_it_was_online_waits_a_bounded_time_and_loses_nothing(tmp_path, server):
    run_dir, said = tmp_path / "run", []
    run = tracker(run_dir, said, mode="online", start_s=60, finish_s=1)
    for number in (1, 2, 3):
        step(run, number)
    began = time.perf_counter()
    run.close()
    assert time.perf_counter() - began < 15
    assert ["wandb has not sent everything (no answer)" in line for line in said] == [True]
    assert [list(each["history"]) for each in segments(run_dir)] == [[1, 2, 3]]


class Accepting(BaseHTTPRequestHandler):
    """As much of wandb's server as its client needs to be online: a run's existence, its last step, its history."""

    protocol_version = "HTTP/1.1"
    history: list[dict]
    asked: list[str]
    hanging: threading.Event

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if self.hanging.is_set():
            time.sleep(60)
        self.answer(self.result(body) if self.path == "/graphql" else self.stream(body))

    do_PUT = do_GET = do_POST

    def stream(self, body: bytes) -> dict:
        for name, part in (json.loads(body).get("files") or {}).items() if "file_stream" in self.path else ():
            if "history" in name:
                self.history.extend(json.loads(line) for line in part["content"])
        return {"exitcode": None, "limits": {}}

    def result(self, body: bytes) -> dict:
        request = json.loads(body)
        given = request.get("variables") or {}
        project = {"id": "1", "name": "scanfoundry", "entity": {"id": "1", "name": "me"}}
        name = given.get("name")
        run = {"id": "1", "name": name, "displayName": "x", "config": "{}", "project": project, "tags": []}
        if "RunResumeStatus" in request["query"]:
            self.asked.append(name)
            last = json.dumps(self.history[-1]) if self.history else "{}"
            counts = {"logLineCount": 0, "historyLineCount": len(self.history), "eventsLineCount": 0}
            tails = {"historyTail": json.dumps([last]), "eventsTail": "[]"}
            known = {"summaryMetrics": last, "wandbConfig": '{"t": 1}', **counts, **tails}
            return {"data": {"model": {**project, "bucket": {**run, **known} if self.history else None}}}
        if "UpsertBucket" in request["query"]:
            return {"data": {"upsertBucket": {"bucket": run, "inserted": not self.history}}}
        if "CreateRunFiles" in request["query"]:
            here = f"http://127.0.0.1:{self.server.server_port}/upload"
            files = [{"name": each, "uploadUrl": here} for each in given.get("files", [])]
            return {"data": {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}}
        return {"data": {}}

    def answer(self, found: dict) -> None:
        body = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def accepting(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Accepting]]:
    class Handler(Accepting):
        history, asked, hanging = [], [], threading.Event()

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            pass

    listening = Quiet(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listening.server_port}")
    yield Handler
    listening.shutdown()


@pytest.mark.slow
def test_online_a_requeued_run_goes_on_under_its_id_and_no_step_comes_twice_or_never(tmp_path, accepting):
    run_dir, said = tmp_path / "run", []
    first = tracker(run_dir, said, mode="online")
    last = steps_until(first, lambda: first._wandb._ready)
    killed = process(first)
    time.sleep(1)  # it has logged them, and not yet sent
    os.killpg(killed.pid, signal.SIGKILL)
    first._file.close()
    second = tracker(run_dir, said, resumed=last - 2, mode="online")
    last = steps_until(second, lambda: second._wandb._ready, last - 1)
    second.close()
    assert said == []
    assert [row["_step"] for row in accepting.history] == list(range(1, last + 1))
    third = tracker(run_dir, said, resumed=last - 3, mode="online")  # the server is ahead of the checkpoint
    last = steps_until(third, lambda: third._wandb._ready and len(logged(run_dir)) > last, last - 2)
    third.close()
    assert [row["_step"] for row in accepting.history] == list(range(1, last + 1))
    assert [row["loss"] for row in accepting.history] == [1 / row["_step"] for row in accepting.history]
    assert set(accepting.asked) == {(run_dir / "wandb_id.txt").read_text()}
    assert said == []


@pytest.mark.slow
def test_a_network_that_goes_in_the_middle_loses_nothing(tmp_path, accepting):
    run_dir, said = tmp_path / "run", []
    run = tracker(run_dir, said, mode="online", finish_s=2)
    last = steps_until(run, lambda: run._wandb._ready)
    accepting.hanging.set()
    last = steps_until(run, lambda: len(logged(run_dir)) > last + 10, last + 1)
    began = time.perf_counter()
    run.close()
    assert time.perf_counter() - began < 2 + 10 + 5
    assert ["wandb has not sent everything" in line for line in said] == [True]
    assert list(segments(run_dir)[-1]["history"]) == list(range(1, last + 1))


def test_without_a_key_it_becomes_offline(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY")
    run_dir, said = tmp_path / "run", []
    run = tracker(run_dir, said, mode="online", start_s=5)
    last = steps_until(run, lambda: run._wandb._job["mode"] == "offline" and run._wandb._ready)
    run.close()
    assert [("API key" in line) for line in said] == [True]
    assert list(segments(run_dir)[0]["history"]) == list(range(1, last + 1))


def test_a_wandb_that_is_killed_does_not_matter(tmp_path):
    run_dir, said = tmp_path / "run", []
    run = tracker(run_dir, said, mode="offline")
    last = steps_until(run, lambda: run._wandb._ready)
    killed = process(run)
    killed.send_signal(signal.SIGKILL)
    last = steps_until(run, lambda: bool(said), last + 1)
    assert step(run, last + 1) < AT_ONCE
    run.close()
    assert said == ["wandb has failed (it has ended); the run goes on without it, metrics.jsonl has everything"]
    assert logged(run_dir) == list(range(1, last + 2))
    assert killed.returncode == -signal.SIGKILL


def test_a_wandb_that_stops_answering_does_not_matter(tmp_path):
    run_dir, said = tmp_path / "run", []
    run = tracker(run_dir, said, mode="offline")
    last = steps_until(run, lambda: run._wandb._ready)
    run._wandb._job["finish_s"] = 1
    stopped = process(run)
    stopped.send_signal(signal.SIGSTOP)
    for number in range(last + 1, last + 2000):  # more than a pipe would hold
        assert step(run, number) < AT_ONCE
    began = time.perf_counter()
    run.close()
    assert time.perf_counter() - began < 15
    assert stopped.returncode == -signal.SIGKILL
    assert len(said) == 1
    assert "has not written everything" in said[0]


def test_a_missing_wandb_does_not_matter(tmp_path, monkeypatch):
    (tmp_path / "broken" / "wandb").mkdir(parents=True)
    (tmp_path / "broken" / "wandb" / "__init__.py").write_text("raise ImportError('wandb is not installed')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'broken'}:{os.environ.get('PYTHONPATH', '')}")
    run_dir, said = tmp_path / "run", []
    run = tracker(run_dir, said, mode="offline")
    last = steps_until(run, lambda: bool(said))
    run.close()
    assert said == [
        "wandb has failed (wandb is not installed); the run goes on without it, metrics.jsonl has everything"
    ]
    assert logged(run_dir) == list(range(1, last + 1))


def test_what_a_killed_run_had_logged_is_still_written(tmp_path):
    code = """
    import os, signal, sys, time
    from pathlib import Path
    from scanfoundry.pretrain.logging.tracker import Tracker
    from scanfoundry.pretrain.config.wandb import WandbConfig
    run_dir = Path(sys.argv[1])
    run_dir.mkdir()
    run = Tracker(run_dir, WandbConfig(mode="offline", finish_s=5), {}, 0, 100, True)
    step = 0
    while not run._wandb._ready:
        step += 1
        run.log({"step": step, "loss": 1.0, "samples_per_second": 1.0}, True)
        time.sleep(0.1)
    print(run._wandb._process.pid, step, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "run")]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    companion, last = map(int, killed.stdout.split())
    deadline = time.monotonic() + 30
    while Path(f"/proc/{companion}/cmdline").exists() and Path(f"/proc/{companion}/cmdline").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert list(segments(tmp_path / "run")[0]["history"]) == list(range(1, last + 1))


def test_messages_are_one_line_without_secrets():
    text = f"no way\nto http://me:secret@host/path?token=1 with {KEY}"
    assert without_secrets(text) == "no way to http://host/path with ***"
