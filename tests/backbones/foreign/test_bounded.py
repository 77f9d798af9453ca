"""Weight files that would take the memory or the day: refused in one line, by loading and by `models inspect` alike.

One child process reads them all, with its address space and processor time bounded by the system.
"""

import argparse
import json
import pickle
import resource
import struct
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from scanfoundry.backbones.foreign.safe import read_foreign

ROOM, SECONDS, EACH = 1 << 30, 120, 20.0

START = b"\x80\x02"
FLOAT = b"ctorch\nFloatStorage\n"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def got(number: int) -> bytes:
    return b"j" + struct.pack("<I", number)


def twice(levels: int, pair: bytes, first: bytes = b"]", last: bytes = b"") -> bytes:
    """A tuple of values each of which holds the one before twice; `pair` makes one of {old}, of which `first` is one.

    last: a further value, made of the {old} before it.
    """
    body = START + b"(" + first + b"r" + struct.pack("<I", 0)
    for level in range(levels):
        body += pair.replace(b"{old}", got(level)) + b"r" + struct.pack("<I", level + 1)
    return body + last.replace(b"{old}", got(levels)) + b"t."


def call(module: str, name: str, arguments: bytes) -> bytes:
    """A call with a tuple of arguments."""
    return f"c{module}\n{name}\n(".encode() + arguments + b"tR"


def storage(numel: int, key: str = "0") -> bytes:
    return b"(" + text("storage") + FLOAT + text(key) + text("cpu") + b"\x8a\x08" + struct.pack("<q", numel) + b"tQ"


def tensor(numel: int, shape: bytes, stride: bytes, key: str = "0") -> bytes:
    arguments = (
        storage(numel, key) + b"K\x00(" + shape + b"t(" + stride + b"t\x89" + call("collections", "OrderedDict", b"")
    )
    return call("torch._utils", "_rebuild_tensor_v2", arguments)


def long(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def doubled(times: int) -> bytes:
    body = text("x" * 1000)
    for _ in range(times):
        body = call("_codecs", "encode", body + text("hex"))
    return START + body + b"."


PICKLES = {
    "lists": lambda: twice(40, b"]({old}{old}e"),
    "wide lists": lambda: twice(11, b"](" + b"{old}" * 60 + b"e"),
    "tuples": lambda: twice(100, b"{old}{old}\x86"),
    "dictionaries": lambda: twice(40, b"}(K\x00{old}K\x01{old}u"),
    "keys": lambda: twice(60, b"{old}{old}\x86", b")", b"}{old}K\x01s"),
    "keys at once": lambda: twice(60, b"{old}{old}\x86", b")", b"}({old}K\x01u"),
    "set": lambda: twice(60, b"{old}{old}\x86", b")", call("__builtin__", "set", b"]({old}{old}e")),
    "circle": lambda: START + b"]q\x00h\x00a.",
    "circle in a namespace": lambda: START + b"cargparse\nNamespace\n)\x81q\x00}" + text("a") + b"h\x00sb.",
    "deep": lambda: START + b"]" * 200_000 + b"a" * 199_999 + b".",
    "deep tuples": lambda: START + b")" + b"\x85" * 200_000 + b".",
    "encode again": lambda: doubled(45),
    "punycode": lambda: START + call("_codecs", "encode", text("äö" * 50_000) + text("punycode")) + b".",
    "bytearray": lambda: START + call("__builtin__", "bytearray", long(10**12)) + b".",
    "a tensor of nothing": lambda: START + call("torch", "FloatTensor", long(10**12)) + b".",
    "a tensor's state": lambda: START + b"ctorch\nTensor\n)\x81(" + storage(10**12) + b"K\x00"
    + long(10**12) + b"\x85K\x01\x85tb.",
    "one number": lambda: START + tensor(1, long(10**12), b"K\x00") + b".",
    "one number, often": lambda: START + b"](" + tensor(1, long(10**6), b"K\x00") * 500 + b"e.",
    "more than is stored": lambda: START + tensor(10**12, long(10**12), b"K\x01") + b".",
    "meta": lambda: START + call("torch._utils", "_rebuild_meta_tensor_no_storage",
                                 b"ctorch\nfloat32\n(" + long(10**12) + b"tK\x01\x85\x89") + b".",
    "dtype": lambda: START + call("numpy", "dtype", text("V1000000000")) + b".",
    "dtype by state": lambda: START + call("numpy", "dtype", text("S4") + b"\x89\x88") + b"(K\x03" + text("|") + b"NNN"
    + long(10**9) + b"K\x01K\x00tb.",
    "a call of a call": lambda: START
    + call("torch._tensor", "_rebuild_from_type_v2",
           b"c__builtin__\nbytearray\nctorch\nTensor\n" + long(10**12) + b"\x85}") + b".",
    "of one list, often": lambda: START + b"(](" + b"K\x01" * 100_000 + b"eq\x00"
    + b"c__builtin__\nset\nh\x00\x85R" * 20_000 + b"t.",
    "steps": lambda: START + b"(" + b"N" * 5_000_001 + b"t.",
}  # fmt: skip


def torch_zip(path: Path, pickled: bytes, twins: int = 1) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for number in range(twins):
            folder = "archive" if number == 0 else f"archive{number}"
            archive.writestr(f"{folder}/data.pkl", pickled)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", bytes(4))
        archive.writestr("archive/version", "3\n")


def old_torch(path: Path, pickled: bytes) -> None:
    """As torch wrote before 1.6: a row of pickles."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, system)]
    path.write_bytes(b"".join([*parts, pickled, pickle.dumps([], 2)]) + bytes(100))


def child(folder: Path) -> None:
    """Looks into every file of the folder both ways; a line of JSON for each."""
    from scanfoundry.configs.errors import UserError
    from scanfoundry.launch.zoo.open import contents_of

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    for path in sorted(folder.iterdir()):
        said, begun = [], time.process_time()
        for look in (read_foreign, contents_of):
            try:
                look(path)
                said.append("read")
            except UserError as error:
                said.append(str(error))
            except BaseException as error:
                said.append(f"RAISED {type(error).__name__}")
        print(json.dumps([path.name, said, time.process_time() - begun]), flush=True)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the child's own size is read from /proc")
def test_files_that_would_take_the_memory_or_the_day_are_refused(tmp_path):
    for name, make in PICKLES.items():
        torch_zip(tmp_path / f"{name}.pth", make())
        if name != "steps":
            old_torch(tmp_path / f"{name}.old", make())
    torch_zip(tmp_path / "twins.pth", START + b"N.", 2)
    done = subprocess.run([sys.executable, __file__, str(tmp_path)], capture_output=True, text=True, timeout=300)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"ended by {done.returncode} after {found[-1:]}: {done.stderr[-1000:]}"
    assert len(found) == len(list(tmp_path.iterdir()))
    for name, said, seconds in found:
        for line in said:
            assert line.startswith(str(tmp_path)), (name, said)
            assert "\n" not in line
            assert "memory" not in line.lower().replace("take the memory", ""), (name, said)
        assert seconds < EACH, (name, seconds)


def test_what_weights_hold_is_read(tmp_path):
    layer = torch.nn.Linear(4, 4)
    optimiser = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 4)).sum().backward()
    optimiser.step()
    shared = [1.0, 2.0]
    content = {
        "state_dict": OrderedDict(layer.state_dict()),
        "optimizer": optimiser.state_dict(),
        "tied": {"a": layer.weight, "b": layer.weight, "half": layer.weight.half(), "part": layer.weight[1:, ::2]},
        "expanded": torch.ones(3)[None].expand(5, 3),
        "args": argparse.Namespace(lr=0.1, layers=[1, 2], inner=argparse.Namespace(a=(1, (2, 3)))),
        "records": {"curves": [shared, shared], 3: {"x": None}, "pair": {(1, 2): "a"}, "set": {1, 2}},
        "numpy": [np.float64(0.5), np.int64(3), np.float32(0.1)],
        "others": [b"\x00\xff", bytearray(b"ab"), 1 + 2j, torch.Size([1, 2]), torch.float16, torch.device("cpu"), True],
    }
    torch.save(content, tmp_path / "a.pth")
    found = read_foreign(tmp_path / "a.pth")
    assert found.keys() == content.keys()
    torch.testing.assert_close(found["tied"], content["tied"])
    torch.testing.assert_close(found["optimizer"]["state"], content["optimizer"]["state"])
    assert found["args"] == content["args"]
    assert found["records"] == content["records"]
    assert found["others"] == content["others"]


def test_every_file_that_torch_writes_passes_its_own_bytes(tmp_path):
    """The stack of stand-ins follows torch's unpickler through every kind of value."""
    torch.save({str(n): torch.full((n % 3 + 1,), n) for n in range(300)}, tmp_path / "a.pth")
    found = read_foreign(tmp_path / "a.pth")
    assert all(torch.equal(found[str(n)], torch.full((n % 3 + 1,), n)) for n in range(300))


if __name__ == "__main__":
    child(Path(sys.argv[1]))
