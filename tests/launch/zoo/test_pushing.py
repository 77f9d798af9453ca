"""The hub's own client against a server on this machine that speaks the hub's API as far as an upload needs it.

Uploads go the LFS way here; the hub's newer storage (Xet) cannot be had without the hub.
"""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from scanfoundry.backbones.models.description import ReleaseInfo
from scanfoundry.backbones.models.release import load_release, save_release
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.vit import ViTConfig

SCANFOUNDRY = str(Path(sys.executable).parent / "scanfoundry")
TOKEN = "hf_test"
pytestmark = pytest.mark.slow  # each push is a process of its own


class Hub(ThreadingHTTPServer):
    """`repositories`: name -> files; `created`: the requests for new ones."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.created: list[dict] = []
        self.objects: dict[str, bytes] = {}
        self.failing: dict[str, list[int]] = {}  # part of a path -> statuses of the next answers

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        whole = b""
        while size := int(self.rfile.readline(), 16):
            whole += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return whole

    def answer(self, content, status=200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self) -> None:
        data = self.body()
        path = self.path.partition("?")[0]
        for part, statuses in self.server.failing.items():
            if part in path and statuses:
                return self.answer({"error": "not now"}, statuses.pop(0))
        if path != "/api/validate-yaml" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer({"error": "Invalid username or password."}, 401)
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self.create(json.loads(data))
        if path.endswith("/objects/batch"):
            return self.batch(json.loads(data))
        if "/preupload/" in path:
            files = json.loads(data)["files"]
            modes = [
                {"path": f["path"], "uploadMode": "lfs" if f["size"] > 10**6 else "regular", "shouldIgnore": False}
                for f in files
            ]
            return self.answer({"files": modes})
        if "/commit/" in path:
            return self.commit(path.split("/api/models/")[1].split("/commit/")[0], data)
        return self.answer({"error": f"unknown {path}"}, 404)

    def do_PUT(self) -> None:
        data = self.body()
        digest = self.path.rsplit("/", 1)[1]
        if hashlib.sha256(data).hexdigest() != digest:
            return self.answer({"error": "wrong content"}, 400)
        self.server.objects[digest] = data
        return self.answer({})

    def create(self, asked) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        self.server.created.append(asked)
        if name in self.server.repositories:
            return self.answer({"error": "exists", "url": f"{self.server.address}/{name}"}, 409)
        self.server.repositories[name] = {}
        return self.answer({"url": f"{self.server.address}/{name}"})

    def batch(self, asked) -> None:
        objects = [
            {
                "oid": o["oid"],
                "size": o["size"],
                "actions": {"upload": {"href": f"{self.server.address}/put/{o['oid']}"}},
            }
            for o in asked["objects"]
        ]
        self.answer({"transfer": "basic", "objects": objects})

    def commit(self, name, data) -> None:
        for line in map(json.loads, data.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.server.repositories[name][value["path"]] = base64.b64decode(value["content"])
            if line["key"] == "lfsFile":
                self.server.repositories[name][value["path"]] = self.server.objects[value["oid"]]
        address = f"{self.server.address}/{name}/commit/{'0' * 40}"
        self.answer({"success": True, "commitOid": "0" * 40, "commitUrl": address})

    def log_message(self, *arguments) -> None:
        pass


@pytest.fixture
def hub():
    running = Hub()
    threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture
def push(hub, tmp_path):
    config = ViTConfig(size="Ti")
    save_release(
        tmp_path / "run",
        {"encoder": build(config).state_dict()},
        ReleaseInfo(backbone=config, objective="mae"),
        ["ab" * 32],
    )

    def run(*words: str, token: str = TOKEN, address: str = "") -> subprocess.CompletedProcess:
        given = {"HF_ENDPOINT": address or hub.address, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
        environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")} | given
        if token:
            environment["HF_TOKEN"] = token
        command = [SCANFOUNDRY, "models", "export", str(tmp_path / "run"), "--out", str(tmp_path / "ours"), *words]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)

    return run


def one_line(done, said):
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("scanfoundry: ")]
    assert len(lines) == 1
    assert said in lines[0], lines[0]
    assert "Traceback" not in done.stderr


def test_a_release_arrives_as_it_is(push, hub, tmp_path):
    (tmp_path / "ours").mkdir()
    done = push("--push", "clinic/brain", "--private", "--licence", "cc-by-4.0", "--without-patients")
    assert done.returncode == 0, done.stderr
    assert f"{hub.address}/clinic/brain/commit/" in done.stdout
    assert hub.created[0]["name"] == "brain"
    assert hub.created[0]["visibility"] == "private"
    stored = hub.repositories["clinic/brain"]
    assert stored == {path.name: path.read_bytes() for path in (tmp_path / "ours").iterdir()}
    card = stored["README.md"].decode()
    assert "# brain\n" in card
    assert 'snapshot_download("clinic/brain")' in card
    for name, content in stored.items():
        (tmp_path / "got").mkdir(exist_ok=True)
        (tmp_path / "got" / name).write_bytes(content)
    assert load_release(tmp_path / "got").info.licence == "cc-by-4.0"


def test_a_push_that_failed_is_repeated_with_the_folder_as_it_is(push, hub, tmp_path):
    hub.failing["/commit/"] = [403]
    one_line(push("--push", "clinic/brain", "--licence", "mit"), "status 403")
    card = tmp_path / "ours" / "README.md"
    card.write_text(card.read_text() + "\nA line of ours.\n")
    done = push("--push", "clinic/brain")  # the folder says the rest
    assert done.returncode == 0, done.stderr
    assert b"A line of ours." in hub.repositories["clinic/brain"]["README.md"]
    assert hub.created[-1].get("visibility") != "private"


def test_what_stands_in_the_way_is_one_line(push, hub, tmp_path):
    one_line(push("--push", "clinic/brain"), "without a licence")
    one_line(push("--push", "brain", "--licence", "mit"), "USER/NAME")
    one_line(push("--private", "--licence", "mit"), "--push")
    assert not (tmp_path / "ours").exists()
    assert not hub.created
    one_line(push("--push", "clinic/brain", "--licence", "mit", token="hf_wrong"), "hf auth login")
    one_line(push("--push", "clinic/brain", token=""), "hf auth login")
    one_line(push("--push", "clinic/brain", address="http://127.0.0.1:9"), "cannot be reached")
    assert (tmp_path / "ours" / "model.safetensors").is_file()
    assert hub.repositories.get("clinic/brain", {}) == {}
