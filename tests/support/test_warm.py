"""A warm process is a process: streams, environment, folder, signals and exit codes of its own."""

import os
import signal
import subprocess
import sys

import pytest
import warm

SHOW = """
import os, sys
print(sys.argv, os.getcwd(), dict(os.environ), os.getpid(), "deepspeed" in sys.modules)
print("an error", file=sys.stderr)
sys.exit(5)
"""
ECHO = """
import sys
for line in sys.stdin:
    print(line.strip()[::-1], flush=True)
print("end")
"""


def test_words_environment_folder_streams_and_exit_code(tmp_path):
    process = warm.Popen(
        [sys.executable, "-c", SHOW, "a"], env={"A": "1"}, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, errors = process.communicate(60)
    environment = {"A": "1", "CUDA_VISIBLE_DEVICES": ""}
    assert out == f"['-c', 'a'] {tmp_path} {environment} {process.pid} True\n"
    assert errors == "an error\n"
    assert process.returncode == process.poll() == 5
    assert process.pid != os.getpid()


def test_it_is_talked_to_and_killed():
    process = warm.Popen([sys.executable, "-c", ECHO], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdin.write("abc\n")
    assert process.stdout.readline() == "cba\n"
    assert process.communicate(60) == ("end\n", None)
    process = warm.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.2)
    assert process.poll() is None
    process.kill()
    assert process.wait(60) == -signal.SIGKILL


def test_scripts_and_errors(tmp_path):
    (tmp_path / "script.py").write_text("import sys\nif __name__ == '__main__':\n    print(sys.argv[1:])\n    1 / 0\n")
    done = warm.run([sys.executable, tmp_path / "script.py", tmp_path], capture_output=True)
    assert done.returncode == 1
    assert done.stdout == f"[{str(tmp_path)!r}]\n"
    assert "ZeroDivisionError" in done.stderr
    with pytest.raises(subprocess.CalledProcessError):
        warm.run([sys.executable, tmp_path / "script.py"], capture_output=True, check=True)


def test_the_command_line():
    done = warm.run([warm.SCANFOUNDRY, "--help"], capture_output=True)
    assert done.returncode == 0, done.stderr
    assert "pretrain" in done.stdout
    done = warm.run([warm.SCANFOUNDRY, "pretrain", "demo", "seed=-1"], capture_output=True)
    assert done.returncode == 2
    assert done.stderr.startswith("scanfoundry: ")
