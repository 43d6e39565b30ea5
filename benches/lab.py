"""What the benchmarks share: processes that are stopped by their id, and a PiCloud of one server and
named devices on loopback, built from the release binaries."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / "target" / "release"
WAIT_SECS = 60


def build():
    subprocess.run(["cargo", "build", "--release", "--locked", "--bins"], cwd=ROOT, check=True)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def until(what, condition, limit=WAIT_SECS, pause=0.02):
    end = time.monotonic() + limit
    while time.monotonic() < end:
        result = condition()
        if result:
            return result
        time.sleep(pause)
    sys.exit(f"Error: waited {limit} s for {what}")


def equal(a, b):
    command = ["diff", "-r", "--no-dereference", "--exclude=.picloud", str(a), str(b)]
    return subprocess.run(command, capture_output=True).returncode == 0


def settle_disk():
    os.sync()


class Process:
    """A child that is stopped by its id, whatever happens."""

    def __init__(self, command, log):
        self.log = open(log, "ab")
        self.child = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log
        )

    def cpu_secs(self):
        fields = Path(f"/proc/{self.child.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def peak_mib(self):
        for line in Path(f"/proc/{self.child.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
        return 0

    def stop(self):
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
            try:
                self.child.wait(20)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()
        self.log.close()


class PiCloud:
    """A server and its devices, each a folder `base/NAME/PiCloud`."""

    def __init__(self, base, devices=("a", "b")):
        self.base = base
        base.mkdir()
        self.port = free_port()
        config = base / "server.toml"
        config.write_text(
            f'[server]\nlisten = "127.0.0.1:{self.port}"\npublic = "127.0.0.1:{self.port}"\n'
            f'data_dir = "{base / "server"}"\n'
        )
        self.agents = {}
        self.server = Process([BIN / "picloud-server", "--config", config, "run"], base / "server.log")
        try:
            until("the server", self._listens)
            for name in devices:
                self.join(name)
            until("all devices in sync", self.is_quiet)
        except BaseException:
            self.stop()
            raise

    def join(self, name):
        """A further device; returns once its agent says that it is in sync or at work."""
        link = subprocess.run(
            [BIN / "picloud-server", "--config", self.base / "server.toml", "invite", "bench"],
            capture_output=True, text=True, check=True,
        ).stdout.strip()
        (self.base / name).mkdir()
        agent = self.base / name / "agent.toml"
        subprocess.run(
            [BIN / "picloud", "--config", agent, "join", link,
             "--folder", self.folder(name), "--device", name],
            check=True, capture_output=True,
        )
        self.agents[name] = Process([BIN / "picloud-agent", "--config", agent], self.base / f"{name}.log")
        until(f"agent {name}", lambda: self.status(name).get("state") in ("in-sync", "syncing"))

    def _listens(self):
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            return True
        except OSError:
            return False

    def folder(self, name):
        return self.base / name / "PiCloud"

    def status(self, name):
        config = self.base / name / "agent.toml"
        run = subprocess.run(
            [BIN / "picloud", "--config", config, "status", "--json"], capture_output=True, text=True
        )
        try:
            return json.loads(run.stdout.splitlines()[0])
        except (IndexError, ValueError):
            return {}

    def is_quiet(self):
        return all(self.status(name).get("state") == "in-sync" for name in self.agents)

    def sync(self, name, limit=1800):
        """`picloud sync` on that device: all of it on the server, all of the server's here."""
        run = subprocess.run(
            [BIN / "picloud", "--config", self.base / name / "agent.toml", "sync", "--timeout", str(limit)],
            capture_output=True, text=True,
        )
        if run.returncode != 0:
            sys.exit(f"Error: picloud sync on {name} ended with {run.returncode}: {run.stderr.strip()}")

    def files_on(self, name):
        """How many files the folder of that device holds; -1 while it is not in sync."""
        folders = self.status(name).get("folders") or [{}]
        folder = folders[0]
        if folder.get("state") != "in-sync":
            return -1
        return folder.get("files", -1)

    def processes(self):
        return {"server": self.server, **self.agents}

    def stop(self):
        for process in (*self.agents.values(), self.server):
            process.stop()
