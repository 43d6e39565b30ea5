"""What the benchmarks share: processes that are stopped by their id and say what they cost, machines
in network namespaces of their own, a fresh file system on a loop device, and the comparison of trees."""

import ctypes
import hashlib
import os
import select
import shutil
import signal
import socket
import stat
import subprocess
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
BIN = TARGET / "release"
WAIT_SECS = 60
# What any program that is run may take.
RUN_LIMIT_SECS = 3600
TICKS = os.sysconf("SC_CLK_TCK")
GUEST_MEMORY = 256 << 20


class Failed(SystemExit):
    """What ends a run; its text is for the person who started it."""

    def __init__(self, text):
        super().__init__(f"Error: {text}")


def build():
    try:
        subprocess.run(["cargo", "build", "--release", "--locked", "--bins"], cwd=ROOT, check=True)
    except FileNotFoundError:
        raise Failed("there is no cargo: install Rust, or leave out the building with --no-build") from None
    except subprocess.CalledProcessError:
        raise Failed("PiCloud cannot be built: see above") from None


def run(command, **options):
    """Runs to the end; what it printed when it did not end well is in the error."""
    command = [str(part) for part in command]
    options.setdefault("timeout", RUN_LIMIT_SECS)
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, **options)
    except subprocess.TimeoutExpired as late:
        raise Failed(f"{' '.join(command[:6])} did not end in {late.timeout} s") from None
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip())[-500:]
        raise Failed(f"{' '.join(command[:6])} ended with {done.returncode}: {said}")
    return done.stdout


def until(what, condition, limit=WAIT_SECS, pause=0.02):
    end = time.monotonic() + limit
    while time.monotonic() < end:
        result = condition()
        if result:
            return result
        time.sleep(pause)
    raise Failed(f"waited {limit} s for {what}")


def family(pid):
    """A process and what it has started, and so on."""
    found = [pid]
    for parent in found:
        for task in _listing(f"/proc/{parent}/task"):
            found.extend(int(child) for child in _words(f"/proc/{parent}/task/{task}/children"))
    return found


def _listing(path):
    try:
        return os.listdir(path)
    except OSError:
        return []


def _words(path):
    try:
        return Path(path).read_text().split()
    except OSError:
        return []


def _status_mib(pid, key):
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0


class Process:
    """A child that is stopped by its id, whatever happens; it ends too when this program is killed."""

    def __init__(self, command, log, prefix=(), env=None):
        self.log_path = log
        self.log = open(log, "ab")
        self.child = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *prefix, *(str(part) for part in command)],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, start_new_session=True,
            env=None if env is None else {**os.environ, **env},
        )

    @property
    def pid(self):
        return self.child.pid

    def check(self):
        code = self.child.poll()
        if code is not None:
            raise Failed(f"{self.child.args[-3:]} ended with {code}: {self.log_tail()}")

    def log_tail(self):
        return Path(self.log_path).read_text(errors="replace")[-500:]

    def cpu_secs(self):
        total = 0
        for pid in family(self.pid):
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            # User and system time, its own and of the children it has waited for.
            total += sum(int(field) for field in fields[11:15])
        return total / TICKS

    def peak_mib(self):
        return sum(_status_mib(pid, "VmHWM") for pid in family(self.pid))

    def resident_mib(self):
        return sum(_status_mib(pid, "VmRSS") for pid in family(self.pid))

    def reset_peak(self):
        for pid in family(self.pid):
            try:
                Path(f"/proc/{pid}/clear_refs").write_text("5")
            except OSError:
                pass

    def finish(self):
        """Waits for its end; returns its CPU seconds and its peak memory."""
        peak = 0
        ended = threading.Event()
        late = time.monotonic() + RUN_LIMIT_SECS

        def watch():
            nonlocal peak
            while not ended.wait(0.02):
                peak = max(peak, self.peak_mib())
                if time.monotonic() > late:
                    self.child.kill()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            _, status, usage = os.wait4(self.pid, 0)
            self.child.returncode = os.waitstatus_to_exitcode(status)
        finally:
            ended.set()
            thread.join()
        self.log.close()
        if time.monotonic() > late:
            raise Failed(f"{self.child.args} did not end in {RUN_LIMIT_SECS} s")
        if self.child.returncode != 0:
            raise Failed(f"{self.child.args} ended with {self.child.returncode}: {self.log_tail()}")
        return usage.ru_utime + usage.ru_stime, peak

    def stop(self):
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
            try:
                self.child.wait(20)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()
        # What it has forked is in its group, and may be at work still.
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.log.close()


class Network:
    """Parties on one wire: each in a network namespace with one interface, joined by a bridge.

    A namespace lives as long as its holder, a process that ends when this program does, in whatever
    way; there is no route out of it. Where namespaces cannot be made, all parties share loopback, and
    nothing is known of the bytes on the wire.
    """

    def __init__(self, names, apart=True):
        self.names = list(names)
        self.holders = {}
        self.ports = {}
        if apart:
            try:
                self._join()
            except BaseException:
                self.close()
                raise

    @staticmethod
    def can_be_apart():
        if any(shutil.which(tool) is None for tool in ("ip", "nsenter", "unshare")):
            return False
        return subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode == 0

    def _join(self):
        for name in ("switch", *self.names):
            quiet = "for f in /proc/sys/net/ipv6/conf/*/disable_ipv6; do echo 1 > $f; done 2>/dev/null"
            holder = subprocess.Popen(
                ["unshare", "--net", "--", "sh", "-c", f"{quiet}; echo ready; exec cat > /dev/null"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
            )
            self.holders[name] = holder
            if holder.stdout.readline() != b"ready\n":
                raise Failed("cannot make a network namespace")
        wire = ["link add br0 type bridge", "link set br0 up"]
        for n, name in enumerate(self.names):
            wire.append(f"link add p{n} type veth peer name e0 netns {self.holders[name].pid}")
            wire.append(f"link set p{n} master br0 up")
        self._ip("switch", wire)
        for name in self.names:
            self._ip(name, [
                f"addr add {self.address(name)}/24 dev e0", "link set e0 up", "link set lo up"
            ])

    def _ip(self, name, commands):
        subprocess.run(
            [*self.prefix(name), "ip", "-batch", "-"], input="\n".join(commands), text=True, check=True
        )

    def prefix(self, name):
        if not self.holders:
            return []
        return ["nsenter", f"--net=/proc/{self.holders[name].pid}/ns/net", "--"]

    def address(self, name):
        return f"10.77.0.{self.names.index(name) + 1}" if self.holders else "127.0.0.1"

    def port(self, name, usual):
        """A port that is free on that party: the usual one where it is alone."""
        if self.holders:
            return usual
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            return s.getsockname()[1]

    def listens(self, name, port):
        process = self.holders[name].pid if self.holders else "self"
        for table in ("tcp", "tcp6"):
            for line in _lines(f"/proc/{process}/net/{table}")[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rsplit(":", 1)[1], 16) == port:
                    return True
        return False

    def wire(self, name):
        """The bytes a party has sent and received, or nothing."""
        if not self.holders:
            return None
        for line in _lines(f"/proc/{self.holders[name].pid}/net/dev"):
            interface, _, numbers = line.partition(":")
            if interface.strip() == "e0":
                fields = numbers.split()
                return int(fields[8]), int(fields[0])
        return None

    def close(self):
        for holder in self.holders.values():
            holder.stdin.close()
            holder.wait()
            holder.stdout.close()
        self.holders = {}


def _lines(path):
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


class Party:
    """One machine: what runs there, and what that has cost so far."""

    def __init__(self, name, network):
        self.name = name
        self.network = network
        self.running = []
        self.spent = 0.0
        self.highest = 0.0

    def start(self, command, log, env=None, prefix=()):
        process = Process(command, log, [*self.network.prefix(self.name), *prefix], env)
        self.running.append(process)
        return process

    def finish(self, command, log, env=None):
        process = self.start(command, log, env)
        try:
            cpu, peak = process.finish()
        finally:
            self.end(process)
        self.spent += cpu
        self.highest = max(self.highest, peak)

    def run(self, command, **options):
        """A command that belongs to the setting up: what it costs is not counted."""
        return run([*self.network.prefix(self.name), *command], **options)

    def end(self, process):
        if process in self.running:
            self.running.remove(process)
        process.stop()

    def stop(self):
        for process in reversed(self.running):
            process.stop()
        self.running = []

    def check(self):
        for process in self.running:
            process.check()

    def cpu_secs(self):
        return self.spent + sum(process.cpu_secs() for process in self.running)

    def peak_mib(self):
        return max(self.highest, sum(process.peak_mib() for process in self.running))

    def resident_mib(self):
        return sum(process.resident_mib() for process in self.running)

    def note_peak(self):
        self.highest = self.peak_mib()

    def reset_peak(self):
        self.highest = 0.0
        for process in self.running:
            process.reset_peak()


class Watched:
    """Looks at the memory of parties all the time: what a daemon forks is gone when its work is done."""

    def __init__(self, parties):
        self.parties = parties
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)

    def _look(self):
        while not self.ended.wait(0.02):
            for party in self.parties:
                party.note_peak()

    def __enter__(self):
        self.thread.start()

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()


class Disk:
    """A file system that nobody used before: ext4 in an image on a loop device with direct I/O.

    Without root it is a plain directory. The loop device goes away with the mount, and the mount with
    the mount namespace in which `compare` runs: a kill leaves nothing but the image.
    """

    def __init__(self, base, gib):
        self.path = base / "disk"
        self.path.mkdir()
        self.image = base / "image" if gib else None
        self.mounted = False
        if self.image:
            free = shutil.disk_usage(base).free
            if free < (gib + 1) << 30:
                raise Failed(f"{base} has {free >> 30} GiB free, and the disk is to have {gib}: "
                             "see --disk-gib and --dir")
            run(["fallocate", "-l", f"{gib}G", self.image])

    def fresh(self):
        self.close()
        if not self.image:
            shutil.rmtree(self.path)
            self.path.mkdir()
            return
        # An inode per 4 KiB for the millions of files; their tables are not zeroed behind our back.
        run(["mkfs.ext4", "-q", "-F", "-i", "4096", "-E", "nodiscard", "-m", "0", self.image])
        loop = run(["losetup", "--show", "--find", "--direct-io=on", self.image]).strip()
        try:
            run(["mount", "-o", "noatime,noinit_itable", loop, self.path])
        finally:
            # Detached at once, or with the mount that uses it.
            subprocess.run(["losetup", "--detach", loop], check=False)
        self.mounted = True

    def close(self):
        if self.mounted:
            # Who was killed a moment ago may not have closed its files yet; and a walk of our own that was
            # interrupted has its directory open until this program ends, and the mount goes with that.
            try:
                until(f"{self.path} to be unmounted", self._unmounted, limit=5, pause=0.1)
            except Failed:
                run(["umount", "--lazy", self.path])
            self.mounted = False

    def _unmounted(self):
        return subprocess.run(["umount", self.path], capture_output=True).returncode == 0


class Confinement:
    """One core and 256 MiB: by a cgroup and `taskset`, or by `prlimit` where no cgroup can be made."""

    # The root of version 2, and the memory controller of version 1.
    ROOTS = ((Path("/sys/fs/cgroup"), "memory.max"), (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"))

    def __init__(self):
        self.group = next(filter(None, (self.make(root, limit) for root, limit in self.ROOTS)), None)
        self.how = "cgroup, taskset" if self.group else "prlimit --data, taskset"

    @staticmethod
    def make(root, limit):
        # Where no controller is mounted, this is a plain directory or none.
        if not (root / "cgroup.procs").exists():
            return None
        if (root / "cgroup.subtree_control").exists():
            try:
                (root / "cgroup.subtree_control").write_text("+memory")
            except OSError:
                pass
        group = root / f"picloud-bench-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            return None
        try:
            if (group / limit).exists():
                (group / limit).write_text(str(GUEST_MEMORY))
                return group
        except OSError:
            pass
        group.rmdir()
        return None

    def prefix(self):
        if self.group:
            enter = f'echo $$ > {self.group}/cgroup.procs && exec "$@"'
            return ["taskset", "-c", "0", "sh", "-c", enter, "sh"]
        return ["taskset", "-c", "0", "prlimit", f"--data={GUEST_MEMORY}", "--"]

    def close(self):
        if self.group:
            until("the cgroup to be empty", self._removed, limit=10)
            self.group = None

    def _removed(self):
        try:
            self.group.rmdir()
            return True
        except OSError:
            return False


class Arrivals:
    """Tells that something came to a directory, as soon as the kernel does."""

    MOVED_TO, CLOSE_WRITE = 0x80, 0x8

    def __init__(self, directory):
        libc = ctypes.CDLL(None, use_errno=True)
        self.fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise Failed(f"inotify: {os.strerror(ctypes.get_errno())}")
        mask = self.MOVED_TO | self.CLOSE_WRITE
        if libc.inotify_add_watch(self.fd, os.fsencode(directory), mask) < 0:
            code = ctypes.get_errno()
            self.close()
            raise Failed(f"inotify {directory}: {os.strerror(code)}")

    def wait(self, secs):
        if select.select([self.fd], [], [], secs)[0]:
            os.read(self.fd, 65536)

    def close(self):
        os.close(self.fd)


OWN_NAMES = (b".picloud", b".stfolder")


def portray(path, mtime_unit_ns=1):
    """What must be equal of one entry. A directory's and a link's times are not carried."""
    info = os.lstat(path)
    if stat.S_ISLNK(info.st_mode):
        return ("link", os.readlink(path))
    mode = stat.S_IMODE(info.st_mode)
    if stat.S_ISDIR(info.st_mode):
        return ("directory", mode)
    if not stat.S_ISREG(info.st_mode):
        return None
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "blake2b").hexdigest()
    return ("file", mode, info.st_size, info.st_mtime_ns // mtime_unit_ns, digest)


def portrait(root, mtime_unit_ns=1):
    entries = {}
    root = os.fsencode(root)
    for directory, names, files in os.walk(root):
        if directory == root:
            names[:] = [name for name in names if name not in OWN_NAMES]
        for name in names + files:
            path = os.path.join(directory, name)
            entry = portray(path, mtime_unit_ns)
            if entry is not None:
                entries[os.path.relpath(path, root)] = entry
    return entries


def differences(a, b):
    return [
        (path, a.get(path), b.get(path))
        for path in sorted(a.keys() | b.keys())
        if a.get(path) != b.get(path)
    ]
