"""What is inside is told; nothing inside is run; code is refused by its name."""

import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import warm
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from scanfoundry.backbones.foreign.safe import read_foreign
from scanfoundry.backbones.models.description import ReleaseInfo, SourceRecord
from scanfoundry.backbones.models.release import save_release
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.vit import ViTConfig
from scanfoundry.configs.errors import UserError
from scanfoundry.launch.zoo.contents import shortened
from scanfoundry.launch.zoo.inspecting import inspect
from scanfoundry.launch.zoo.open import contents_of
from scanfoundry.launch.zoo.pickles import COMPUTED, pickle_imports, unneeded_imports

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(40, dtype=torch.float16)}


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def test_safetensors(tmp_path):
    save_file(TENSORS, tmp_path / "a.safetensors", metadata={"format": "pt", "author": "A \x1b[2J B"})
    text = "\n".join(inspect(tmp_path / "a.safetensors"))
    assert "safetensors" in text
    assert "2 of 46 numbers (40 F16, 6 F32)" in text
    assert "largest: b 40, a.weight 2x3" in text
    assert "metadata author: A \\u001b[2J B" in text
    assert "\x1b" not in text
    assert "not a file of the catalogue" in text
    assert "loads into no backbone" in text


def test_a_torch_file_with_records(tmp_path, vit_file):
    text = "\n".join(inspect(vit_file))
    assert "torch file (zip)" in text
    assert "record epoch: 7" in text
    assert "first: model.cls_token 1x1x192" in text
    assert "loads into: ViTConfig" in text
    assert "used as they are" in text
    torch.save(
        {"state_dict": TENSORS, "optim": {"momentum": [torch.ones(3)]}, "curve": [np.float64(0.5)]}, tmp_path / "a"
    )
    text = "\n".join(inspect(tmp_path / "a"))
    assert "state_dict: 2 tensors, 46 numbers" in text
    assert "optim: 1 tensors, 3 numbers" in text
    assert "record curve" in text


def test_old_torch_files_and_bare_pickles_are_looked_into(tmp_path):
    torch.save({"state_dict": TENSORS, "epoch": 3}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    text = "\n".join(inspect(tmp_path / "old.pth"))
    assert "from before torch 1.6" in text
    assert "2 of 46 numbers" in text
    assert "record epoch: 3" in text
    (tmp_path / "plans.pkl").write_bytes(pickle.dumps({"patch": [128, 128, 128], "name": "nnU-Net"}))
    text = "\n".join(inspect(tmp_path / "plans.pkl"))
    assert "no torch file; nothing in it was run" in text
    assert "imports: nothing" in text
    assert "nnU-Net" in text


PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
KINDS = [(kind, protocol) for kind in ("bare", "zip", "old torch") for protocol in PROTOCOLS]


# torch writes no older protocols
@pytest.mark.parametrize(("kind", "protocol"), [one for one in KINDS if one[0] != "old torch" or one[1] >= 2])
def test_code_is_refused_by_name_and_never_run(tmp_path, kind, protocol):
    mark, path = tmp_path / "was-here", tmp_path / "evil"
    content = {"state_dict": TENSORS if kind == "old torch" else 1, "extra": Evil(mark)}
    if kind == "bare":
        path.write_bytes(pickle.dumps(content, protocol))
    elif kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(content, protocol))
            archive.writestr("archive/version", "3\n")
    else:
        torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"would run (posix|nt)\.system.*nothing was run"):
        inspect(path)
    assert not mark.exists()
    if kind == "bare":
        pickle.loads(path.read_bytes())
        assert mark.exists()  # the file does do harm where it is opened carelessly


def test_names_that_are_hidden_are_refused_as_that():
    # two harmless strings, taken off again: what is imported is not what was pushed last
    hidden = b"\x80\x04\x8c\x02os\x8c\x06system\x8c\x05numpy\x8c\x05dtype00\x93."
    assert pickle_imports(io.BytesIO(hidden)) == [COMPUTED]
    memo = b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94h\x00h\x01\x93."
    assert pickle_imports(io.BytesIO(memo)) == ["os.system"]
    framed = b"\x80\x04\x8c\x02os\x94\x95" + bytes(8) + b"\x8c\x06system\x94\x93."
    assert pickle_imports(io.BytesIO(framed)) == ["os.system"]
    assert unneeded_imports([COMPUTED, "torch.FloatStorage", "collections.OrderedDict"], set()) == [COMPUTED]
    for harmful in (
        "torch.load",
        "torch.hub.load",
        "builtins.eval",
        "torch.storage._load_from_bytes",
        "copyreg.__reduce__",
    ):
        assert unneeded_imports([harmful], set()) == [harmful]


NAMES = st.from_regex(r"[a-z]{1,8}(\.[a-z]{1,8})?", fullmatch=True)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(NAMES, st.from_regex(r"[a-z]{1,8}", fullmatch=True)), max_size=4), st.booleans())
def test_every_import_of_a_pickle_is_listed(imports, stacked):
    body = b"\x80\x04"
    for module, name in imports:
        if stacked:
            body += b"\x8c" + bytes([len(module)]) + module.encode() + b"\x94"
            body += b"\x8c" + bytes([len(name)]) + name.encode() + b"\x94\x93"
        else:
            body += f"c{module}\n{name}\n".encode()
        body += b"0"
    found = pickle_imports(io.BytesIO(body + b"N."))
    assert found == list(dict.fromkeys(f"{module}.{name}" for module, name in imports))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=30)
    | st.binary(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=100, deadline=None)
@given(JSON, st.integers(2, pickle.HIGHEST_PROTOCOL))
def test_plain_data_needs_no_import(content, protocol):
    allowed = {"_codecs.encode", "__builtin__.bytes"}  # bytes in pickles of protocol 2
    assert set(pickle_imports(io.BytesIO(pickle.dumps(content, protocol)))) <= allowed


def told_or_refused(path):
    try:
        said = contents_of(path).kind
    except UserError as error:
        said = str(error)
    assert said
    assert "\n" not in said


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"", b"\x80\x02", b"\x80\x04", b"PK\x03\x04", b"\x08\0\0\0\0\0\0\0{"]))
def test_any_bytes_are_told_or_refused(tmp_path_factory, rest, start):
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(start + rest)
    told_or_refused(path)


def test_a_member_that_is_longer_than_its_archive_is_refused(tmp_path):
    torch.save({"state_dict": TENSORS}, tmp_path / "whole")
    content = bytearray((tmp_path / "whole").read_bytes())
    content[29] ^= 7  # of the length of the extra field: the pickle would begin behind the end of the file
    (tmp_path / "flipped").write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        contents_of(tmp_path / "flipped")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_flipped_byte_is_told_or_refused(tmp_path_factory, data):
    base = tmp_path_factory.getbasetemp()
    old = data.draw(st.booleans())
    torch.save({"state_dict": TENSORS}, base / "whole", _use_new_zipfile_serialization=not old)
    content = bytearray((base / "whole").read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    (base / "flipped").write_bytes(content)
    told_or_refused(base / "flipped")


@given(st.text())
def test_what_is_shown_is_one_printable_line(text):
    assert shortened(text).isprintable()
    assert len(shortened(text)) <= 120


@pytest.fixture
def release(tmp_path):
    config = ViTConfig(size="Ti")
    info = ReleaseInfo(
        backbone=config, objective="mae", step=40, licence="cc-by-4.0", citation="Us 2026",
        sources=(SourceRecord(name="mr", manifest_sha256="ab" * 32, site="s"),),
    )  # fmt: skip
    save_release(tmp_path / "run", {"encoder": build(config).state_dict()}, info, ["p1", "p2"])
    return tmp_path / "run"


def test_a_release_by_its_folder_or_its_weights(release):
    for path in (release, release / "model.safetensors"):
        text = "\n".join(inspect(path))
        assert "a pre-trained encoder" in text
        assert "checksum right" in text
        assert "objective: mae, step 40" in text
        assert f"source: mr, manifest {'ab' * 32}" in text
        assert "patients trained on: 2 listed" in text
        assert "licence: cc-by-4.0" in text
    (release / "model.safetensors").write_bytes((release / "model.safetensors").read_bytes()[:-4] + b"oops")
    assert "WRONG: damaged" in "\n".join(inspect(release))
    (release / "model.safetensors").unlink()
    assert "MISSING" in "\n".join(inspect(release))


def test_run_and_checkpoint_folders(tmp_path):
    step = tmp_path / "run" / "checkpoints" / "step-00000040"
    (step / "state").mkdir(parents=True)
    (step / "state" / "weights").write_bytes(b"1234")
    (step / "complete.json").write_text('{"step": 40, "files": {"state/weights": {"bytes": 4, "crc32": 1}}}')
    for path in (tmp_path / "run", step):
        assert "a checkpoint of step 40, 1 files, 4 B" in "\n".join(inspect(path))
    (step / "state" / "weights").write_bytes(b"123")
    assert "BROKEN: state/weights" in "\n".join(inspect(step))
    (step / "complete.json").write_text("{")
    with pytest.raises(UserError, match="broken checkpoint"):
        inspect(step)
    with pytest.raises(UserError, match="no release, run or checkpoint"):
        inspect(tmp_path)


def test_at_the_command_line_it_is_one_line_and_exit_code_2(tmp_path):
    mark = tmp_path / "was-here"
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Evil(mark)))
    for path, said in ((tmp_path / "evil.pkl", "posix.system"), (tmp_path / "none", "there is no file")):
        done = warm.run([warm.SCANFOUNDRY, "models", "inspect", path], capture_output=True, text=True)
        assert done.returncode == 2
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not mark.exists()


def test_a_list_of_tensors_without_end_is_refused_before_it_is_read(tmp_path):
    entry = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = ("{" + ",".join(f'"a{number}":{entry}' for number in range(150_000)) + "}").encode()
    path = tmp_path / "many.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    for read in (contents_of, read_foreign):
        with pytest.raises(UserError, match="its list of tensors takes more than 8388608 bytes"):
            read(path)
