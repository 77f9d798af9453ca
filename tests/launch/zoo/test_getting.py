"""Whatever a server does: the right model is installed, or one clear line says why not and nothing is."""

import hashlib
import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch
import warm

import scanfoundry.backbones as backbones
from scanfoundry.configs.errors import UserError
from scanfoundry.launch.zoo.download import RetryPolicy
from scanfoundry.launch.zoo.get import InstallOptions, get
from scanfoundry.launch.zoo.origin import read_origin

MB = 1 << 20
QUICK = RetryPolicy(timeout=1.0, attempts=3)


@pytest.fixture
def sums(vit_file):
    content = vit_file.read_bytes()
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


@pytest.fixture
def served(server, vit_file, entry):
    """The tiny model on the server, with an ETag."""
    server.files["tiny.pth"], server.etags["tiny.pth"] = vit_file.read_bytes(), '"one"'
    return lambda **download: entry(server.url("tiny.pth"), **download)


def wish(**changes):
    return InstallOptions(patience=QUICK, **changes)


@pytest.fixture(autouse=True)
def everything_is_logged(caplog):
    caplog.set_level("INFO", "scanfoundry")


def no_rest(models):
    return sorted(path.name for path in models.iterdir()) in (["tiny", ".tiny.lock"], [".tiny.lock", "tiny"])


def test_it_is_installed_found_and_described(served, models, sums, vit_file, caplog):
    folder = get(served(**sums), wish())
    assert folder == models / "tiny"
    assert no_rest(models)
    encoder, info = backbones.load("tiny")  # by its name, as init and checkpoint do
    assert (info.licence, info.citation, info.objective) == ("cc-by-4.0", "Nobody 2026", "mae: nothing")
    assert info.backbone.in_channels == 1
    theirs = torch.load(vit_file, weights_only=True)["model"]
    assert torch.equal(encoder.state_dict()["blocks.3.attn.qkv.weight"], theirs["blocks.3.attn.qkv.weight"])
    origin = read_origin(folder)
    assert (origin.sha256, origin.bytes, origin.verified_by) == (sums["sha256"], sums["bytes"], "sha256")
    assert origin.fetched_from.startswith("http://127.0.0.1")
    assert "used as they are" in origin.report
    assert any("verified by sha256" in line for line in caplog.messages)


def test_a_second_get_touches_nothing(served, models, sums, server, caplog):
    folder = get(served(**sums), wish())
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert get(served(**sums), wish()) == folder
    assert "already installed" in caplog.messages[-1]
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert server.gets("tiny.pth") == 1
    with pytest.raises(UserError, match="installed for 1 input channels, 3 are asked for"):
        get(served(**sums), wish(in_channels=3))
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="damaged"):
        get(served(**sums), wish())


def test_without_a_known_sum_it_says_so_and_keeps_what_it_saw(served, models, sums, caplog):
    folder = get(served(), wish(in_channels=3))
    assert any("NOT verified" in line and sums["sha256"] in line for line in caplog.messages)
    assert read_origin(folder).verified_by == ""
    assert read_origin(folder).sha256 == sums["sha256"]
    assert backbones.load("tiny")[1].backbone.in_channels == 3


def test_the_first_digits_of_an_md5_are_held_against_it(served, models, vit_file):
    md5 = hashlib.md5(vit_file.read_bytes()).hexdigest()
    with pytest.raises(UserError, match="its md5 begins with"):
        get(served(md5_prefix="000000"), wish())
    folder = get(served(md5_prefix=md5[:6]), wish())
    assert "md5" in read_origin(folder).verified_by


def test_a_pretraining_starts_from_it_by_name(served, models, sums, tmp_path, vit_file):
    from scanfoundry.pretrain.config.run import PretrainConfig
    from scanfoundry.pretrain.training.initialize import start_encoder

    get(served(**sums), wish())
    config = PretrainConfig.model_validate({
        "run_dir": tmp_path / "run", "steps": 2, "init": "tiny",
        "backbone": {"name": "vit", "size": "Ti", "patch_3d": [16, 16, 16]},
        "objective": {"name": "mae"}, "optimiser": {"warmup_steps": 1},
        "data": {"sources": [{"name": "mr", "path": "shards"}], "crop_3d": [16, 32, 32], "batch_3d": 2},
    })  # fmt: skip
    start = start_encoder(config, fresh=True)
    encoder, origin = start.encoder, start.origin
    theirs = torch.load(vit_file, weights_only=True)["model"]
    assert torch.equal(encoder.state_dict()["norm.weight"], theirs["norm.weight"])
    assert origin.licence == "cc-by-4.0"  # handed on to what the run releases


FAULTS = ["cut", "cut without ranges", "500", "429", "429 with Retry-After", "slow", "silent", "flipped once"]


BOTH = [(fault, known) for fault in FAULTS for known in (True, False)]


# without a sum a wrong bit cannot be seen
@pytest.mark.parametrize(("fault", "known"), [both for both in BOTH if both != ("flipped once", False)])
def test_a_passing_fault_ends_in_the_right_file(served, models, server, faults, sums, fault, known):
    server.faults["tiny.pth"] = {
        "cut": [faults.cut(5 * MB), faults.cut(9 * MB)],
        "cut without ranges": [faults.cut(5 * MB)],
        "500": [faults.status(500), faults.status(503)],
        "429": [faults.status(429)],
        "429 with Retry-After": [faults.status(429, Retry_After="2")],
        "slow": [faults.slow(2 * MB, 0.2)],
        "silent": [faults.silent(after=3 * MB)],
        "flipped once": [faults.flipped],
    }[fault]
    server.ranges = fault != "cut without ranges"
    began = time.monotonic()
    folder = get(served(**(sums if known else {})), wish())
    assert read_origin(folder).sha256 == sums["sha256"]
    assert no_rest(models)
    if fault == "cut":
        assert server.sent["tiny.pth"] == sums["bytes"]  # not a byte twice
    if fault == "429 with Retry-After":
        assert time.monotonic() - began > 2


LASTING = {
    "500": "cannot be fetched in 3 attempts: status 500",
    "429": "cannot be fetched in 3 attempts: status 429",
    "silent": "no byte for 1 s",
    "401": "access is denied.*need a login: get tiny.pth from https://example.org/tiny .* --from FILE",
    "403": "may have moved or need a login",
    "404": "no such file.*may have moved or need a login",
    "shorter": "has 1000 bytes, the catalogue's file has",
    "flipped": "sha256 is .* expected is .*kept as .*tiny.pth.wrong.*the server gives the same file each time",
    "page": "has 30 bytes, the catalogue's file has",
}


@pytest.mark.parametrize("fault", LASTING)
def test_a_lasting_fault_is_one_line_and_nothing_is_installed(served, models, server, faults, sums, fault):
    if fault.isdigit():
        server.always = faults.status(int(fault), **({"Retry_After": "0"} if fault == "429" else {}))
    elif fault == "shorter":
        server.files["tiny.pth"] = server.files["tiny.pth"][:1000]
    elif fault == "page":
        server.files["tiny.pth"] = b"<html>please sign in</html>   "
    else:
        server.always = {"silent": faults.silent(), "flipped": faults.flipped}[fault]
    with pytest.raises(UserError, match=LASTING[fault]) as caught:
        get(served(**sums), wish())
    assert "\n" not in str(caught.value)
    assert not (models / "tiny").exists()
    if fault == "flipped":
        (kept,) = models.rglob("*.wrong")
        assert kept.stat().st_size == sums["bytes"]
        assert server.gets("tiny.pth") == 2
        server.always = None
        get(served(**sums), wish())
        assert no_rest(models)


def test_a_file_that_came_differently_each_time_is_told_apart(served, models, server, sums):
    def random_bit(handler, content, seen=[]):  # noqa: B006
        seen.append(0)
        damaged = bytearray(content)
        damaged[1000 * len(seen)] ^= 1
        handler.serve(bytes(damaged))
        return True

    server.always = random_bit
    with pytest.raises(UserError, match="came differently each time"):
        get(served(**sums), wish())


def test_a_damaged_file_without_a_sum_is_not_installed_and_not_met_again(served, models, server):
    whole = server.files["tiny.pth"]
    server.files["tiny.pth"], server.etags["tiny.pth"] = whole[: len(whole) // 2], '"half"'
    with pytest.raises(UserError, match=r"truncated or damaged.*nothing was installed, what came is kept as"):
        get(served(), wish())
    assert not (models / "tiny").exists()
    server.files["tiny.pth"], server.etags["tiny.pth"] = whole, '"one"'
    get(served(), wish())
    assert no_rest(models)


def test_the_next_address_is_tried(served, models, server, sums, entry, caplog):
    server.files["b/tiny.pth"] = server.files.pop("tiny.pth")
    found = get(entry(server.url("tiny.pth"), server.url("b/tiny.pth"), **sums), wish())
    assert read_origin(found).fetched_from == server.url("b/tiny.pth")
    assert any("trying the next address" in line for line in caplog.messages)


def test_a_sum_of_the_users_own_replaces_the_catalogues(served, models, sums):
    wrong = served(sha256="0" * 64, bytes=5)
    with pytest.raises(UserError, match="64 hexadecimal"):
        get(wrong, wish(sha256="abc"))
    get(wrong, wish(sha256=sums["sha256"].upper()))
    assert no_rest(models)


def test_another_model_than_the_catalogue_says_is_refused(served, models, sums):
    other = served(**sums).model_copy(update={"backbone": {"name": "vit", "size": "B"}})
    with pytest.raises(UserError, match="its size is Ti, the catalogue's is B"):
        get(other, wish())
    assert not (models / "tiny").exists()


@pytest.mark.parametrize("place", ["file", "folder", "mirror folder", "mirror variable", "mirror url"])
def test_offline_and_mirrors(place, entry, models, sums, vit_file, tmp_path, monkeypatch, server):
    usb = tmp_path / "usb"
    (usb / "tiny").mkdir(parents=True)
    shutil.copy(vit_file, usb / ("tiny.pth" if place == "folder" else "tiny/tiny.pth"))
    source = {"file": usb / "tiny" / "tiny.pth", "folder": usb, "mirror folder": usb}.get(place)
    if place == "mirror variable":
        monkeypatch.setenv("SCANFOUNDRY_MIRROR", str(usb))
    if place == "mirror url":
        server.files["models/tiny/tiny.pth"] = vit_file.read_bytes()
        monkeypatch.setenv("SCANFOUNDRY_MIRROR", server.url("models"))
    before = {path: path.read_bytes() for path in usb.rglob("*.pth")}
    folder = get(entry(**sums), wish(source=source))  # the entry's own address is dead
    assert read_origin(folder).verified_by == "sha256"
    assert {path: path.read_bytes() for path in usb.rglob("*.pth")} == before  # the user's file stays


def test_offline_mistakes(entry, models, sums, vit_file, tmp_path, monkeypatch, server):
    with pytest.raises(UserError, match=r"neither tiny\.pth nor tiny/tiny\.pth; get it from https://example\.org/tiny"):
        get(entry(**sums), wish(source=tmp_path))
    bad = tmp_path / "tiny.pth"
    bad.write_bytes(vit_file.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match=r"expected is .*the file stays where it is; .*--sha256 [0-9a-f]{64}"):
        get(entry(**sums), wish(source=bad))
    assert bad.stat().st_size == sums["bytes"]
    monkeypatch.setenv("SCANFOUNDRY_MIRROR", server.url("nothing"))
    with pytest.raises(UserError, match=r"put the file on the mirror as tiny/tiny\.pth, or unset SCANFOUNDRY_MIRROR"):
        get(entry(**sums), wish())
    (models / "tiny").mkdir()
    (models / "tiny" / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="is not tiny as installed by scanfoundry"):
        get(entry(**sums), wish())
    assert (models / "tiny" / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize("known", [True, False])
def test_room_is_asked_for_before_it_is_needed(served, models, sums, monkeypatch, server, known):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=sums["bytes"]))
    with pytest.raises(UserError, match=r"MB free, up to .* MB are needed"):
        get(served(**(sums if known else {})), wish())
    assert server.sent.get("tiny.pth", 0) == 0 or not known
    assert not (models / "tiny").exists()


def test_a_change_in_the_middle_without_a_sum(served, models, server, faults):
    old = server.files["tiny.pth"]

    def changes(handler, content):
        faults.cut(5 * MB)(handler, b"\0" * len(old))
        server.etags["tiny.pth"] = '"two"'
        return True

    server.etags["tiny.pth"] = '"zero"'
    server.faults["tiny.pth"] = [changes]
    folder = get(served(), wish())
    assert read_origin(folder).sha256 == hashlib.sha256(old).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("known", [True, False], ids=["sum-known", "sum-unknown"])
def test_kill_9_and_go_on(served, models, server, faults, sums, command, known):
    server.faults["tiny.pth"] = [faults.slow(MB // 2, 0.05)]
    words = command(served(**(sums if known else {})), "models", "get", "tiny")
    process = warm.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    part = models / ".tiny.download" / "tiny.pth.part"
    until = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 3 * MB):
        assert time.monotonic() < until
        time.sleep(0.01)
    process.kill()
    process.communicate()
    have = part.stat().st_size
    done = warm.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert str(models / "tiny") in done.stdout
    assert '"patch_3d": [16, 16, 16]' in done.stdout
    start = int(server.seen[-1][2]["Range"].removeprefix("bytes=").rstrip("-"))
    assert start >= min(have, 3 * MB)
    assert server.gets("tiny.pth") == 2
    assert json.loads((models / "tiny" / "origin.json").read_text())["sha256"] == sums["sha256"]
    assert no_rest(models)


@pytest.mark.slow
def test_two_at_once_fetch_once(served, models, server, faults, sums, command):
    server.always = faults.slow(2 * MB, 0.1)
    words = command(served(**sums), "models", "get", "tiny")
    both = [warm.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ended = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], ended
    assert server.gets("tiny.pth") == 1
    assert sum("already installed" in err for _, err in ended) == 1
    assert no_rest(models)


def test_a_download_that_was_not_converted_yet_is_not_fetched_again(served, models, sums, server, vit_file):
    work = models / ".tiny.download"
    work.mkdir(parents=True)
    shutil.copy(vit_file, work / "tiny.pth")  # killed behind the last byte
    (work / "release").mkdir()
    (work / "release" / "model.json").write_text("half")
    get(served(**sums), wish())
    assert server.gets("tiny.pth") == 0
    assert no_rest(models)
    shutil.rmtree(models / "tiny")
    work.mkdir()
    (work / "tiny.pth").write_bytes(b"PK" + bytes(100))
    get(served(**sums), wish())
    assert server.gets("tiny.pth") == 1
    assert no_rest(models)


def test_mistakes_at_the_command_line(served, models, command, tmp_path: Path):
    for words, said in (
        (["get", "tinny"], "did you mean 'tiny'?"),
        (["get", "tiny", "--from", str(tmp_path / "no")], "has neither"),
        (["list", "--family", "no"], "there are test"),
    ):
        done = warm.run(command(served(), "models", *words), capture_output=True, text=True)
        assert done.returncode == 2
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1
    listed = warm.run(command(served(), "models", "list"), capture_output=True, text=True).stdout
    assert "tiny" in listed
    assert "cc-by-4.0" in listed
