"""`python -m scanfoundry.launch.cluster.local_controller JOBFOLDER COMMAND`: SLURM's part on this machine.

Starts a task per rank; when one is lost ends the others; at the time limit and at USR2 asks them to save; starts the
next life where the policy says so. TERM and INT ask for the end. Its process id is the job's id.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import TextIO

from scanfoundry.configs.text import printable
from scanfoundry.launch.cluster.after_failure import judge
from scanfoundry.launch.cluster.job_folder import JobFolder, JobRecord

KILL_WAIT_S = 20.0  # between asking the survivors of a lost rank to end and killing them


class Controller:
    """One job; `run` is its life from the first start to the last verdict."""

    def __init__(self, job: JobFolder, command: str) -> None:
        self.job, self.command, self.number = job, command, str(os.getpid())
        self.tasks: list[subprocess.Popen[bytes]] = []
        for each in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(each, self._forward)

    def run(self) -> int:
        """Live until a verdict says `end`; its exit code."""
        while not self.job.exists or self.job.record().job_id is None:
            time.sleep(0.05)  # the submitting process is writing it
        facts, life = self.job.record(), 0
        while True:
            logs = [self._log(facts, rank) for rank in range(facts.tasks)]
            self.tasks = [self._start(facts, life, rank, log) for rank, log in enumerate(logs)]
            code = self._wait(facts)
            verdict = judge(self.job, f"{self.number}-{life}", code)
            print(f"scanfoundry: job {self.number}: {printable(verdict.reason)}", file=logs[0], flush=True)
            for log in logs:
                log.close()
            if verdict.action == "end":
                return verdict.code
            self._pause(verdict.wait_s)
            life += 1

    def _pause(self, seconds: float) -> None:
        """Wait before the next life; not once the job is cancelled, which that life then says."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.job.is_cancelled:
            time.sleep(0.05)

    def _log(self, facts: JobRecord, rank: int) -> TextIO:
        return open(Path(facts.logs) / f"{self.number}_{rank}_log.out", "a")

    def _start(self, facts: JobRecord, life: int, rank: int, log: TextIO) -> "subprocess.Popen[bytes]":
        variables = {
            "SUBMITIT_LOCAL_JOB_ID": self.number, "SUBMITIT_LOCAL_NTASKS": str(facts.tasks),
            "SUBMITIT_LOCAL_JOB_NUM_NODES": "1", "SUBMITIT_LOCAL_NODEID": "0", "SUBMITIT_LOCAL_LOCALID": str(rank),
            "SUBMITIT_LOCAL_GLOBALID": str(rank), "SCANFOUNDRY_LIFE": str(life),
        }  # fmt: skip
        return subprocess.Popen(["bash", "-c", self.command], stdout=log, stderr=log, env=os.environ | variables)

    def _wait(self, facts: JobRecord) -> int:
        """The highest exit code once all have ended, as srun gives it; 128 + number for a signal."""
        signal_at = time.monotonic() + facts.timeout_min * 60 - facts.signal_delay_s
        signalled, kill = False, None
        while any(task.poll() is None for task in self.tasks):
            now = time.monotonic()
            if not signalled and now >= signal_at:
                self._send(signal.SIGUSR2)
                signalled = True
            if kill is None and any(task.poll() for task in self.tasks):
                self._send(signal.SIGTERM)
                kill = now + KILL_WAIT_S
            if kill is not None and now >= kill:
                self._send(signal.SIGKILL)
            time.sleep(0.05)
        return max(128 - task.returncode if task.returncode < 0 else task.returncode for task in self.tasks)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        if number != signal.SIGUSR2:
            self.job.cancel()
        self._send(number)

    def _send(self, number: int) -> None:
        for task in self.tasks:
            if task.poll() is None:
                task.send_signal(number)


if __name__ == "__main__":
    sys.exit(Controller(JobFolder(Path(sys.argv[1])), sys.argv[2]).run())
