"""What the systems are put through. Each group of workloads shares what is costly to set up.

A group is a generator: given a world and the options it yields `(workload, step, figures)`.
"""

import functools
import hashlib
import math
import os
import random
import shutil
import stat
import statistics
import subprocess
import time
from contextlib import nullcontext
from pathlib import Path

from lab import Arrivals, Failed, Watched, differences, portrait, portray, run

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
# How long the wire is listened to after the change has arrived: for what is still being told.
TRAIL_SECS = 0.3


# Data, from a seed


def make_tree(path, files, size, seed, per_directory=100):
    """Half text, half random, so many files to a directory."""
    rng = random.Random(seed)
    words = [f"word{n}" for n in range(2000)]
    for n in range(files):
        directory = path / f"d{n // per_directory:05}"
        if n % per_directory == 0:
            directory.mkdir(parents=True)
        if n % 2:
            data = rng.randbytes(size)
        else:
            data = " ".join(rng.choices(words, k=size // 5 + 1)).encode()[:size]
        (directory / f"f{n:07}").write_bytes(data)


def make_file(path, size, seed):
    rng = random.Random(seed)
    with open(path, "wb") as file:
        for start in range(0, size, MIB):
            file.write(rng.randbytes(min(MIB, size - start)))


# What no system of these carries, or one leaves out by its own rules.
LEFT_OUT = ("*~", ".#*", "#*#", "~$*", ".DS_Store", "Thumbs.db", ".*.sw[a-p]", ".nfs*", ".stignore", ".picloudignore")


def copy_sources(sources, target):
    """A real tree: what is there, without what is never synced and with the links as they are."""
    for n, source in enumerate(sources):
        # What may not be read is left out.
        subprocess.run(["cp", "-a", source, target / f"{n}-{source.name}"], stderr=subprocess.DEVNULL)
    for pattern in LEFT_OUT:
        run(["find", target, "-name", pattern, "-delete"])
    run(["find", target, "!", "-type", "d", "!", "-type", "f", "!", "-type", "l", "-delete"])
    # Set-user-id and the like are not carried.
    run(["chmod", "-R", "u-s,g-s,-t", target])


def real_sources():
    cargo = Path(os.environ.get("CARGO_HOME", Path.home() / ".cargo"))
    return [path for path in (cargo / "registry" / "src", Path("/usr/share")) if path.is_dir()]


def count(root):
    """Files and links, as the systems count them."""
    return sum(
        not stat.S_ISDIR(os.lstat(os.path.join(directory, name)).st_mode)
        for directory, names, files in os.walk(root)
        for name in names + files
    )


# Measuring


def measure(system, change, arrived, pause=0.02):
    """Seconds from the beginning of `change` until `arrived`, and what that cost each party."""
    os.sync()
    parties = system.measured()
    for party in parties.values():
        party.reset_peak()
    cpu = {name: party.cpu_secs() for name, party in parties.items()}
    wire = {name: system.network.wire(name) for name in parties}
    start = time.monotonic()
    # A change that takes its own time says when the clock is to start.
    # Those that watch are at rest and stay in being: what they took most is known at the end.
    with nullcontext() if system.live else Watched(parties.values()):
        start = change() or start
        system.carry(arrived, pause)
        secs = time.monotonic() - start
    # Those that are run can end without having done it; the others may be looking already again.
    if not system.live and not arrived():
        raise Failed(f"{system.title} said that it was done, and it was not")
    system.rest()
    if system.live:
        time.sleep(TRAIL_SECS)
    figures = {
        "secs": secs,
        "cpu_secs": {name: party.cpu_secs() - cpu[name] for name, party in parties.items()},
        "peak_mib": {name: party.peak_mib() for name, party in parties.items()},
    }
    if all(wire.values()):
        after = {name: system.network.wire(name) for name in parties}
        figures["sent"] = {name: after[name][0] - wire[name][0] for name in parties}
        figures["received"] = {name: after[name][1] - wire[name][1] for name in parties}
    return figures


def check_equal(system, truth=None):
    """All devices have the same; A, from where it came, what it was to be: a fault of a system may come back
    to A, too."""
    first, *others = system.devices
    expected = portrait(system.folder(first), system.mtime_unit_ns)
    if truth is not None:
        tell(system, f"are not on {first} what they were", differences(truth, expected))
    for name in others:
        tell(system, f"differ on {name}", differences(expected, portrait(system.folder(name), system.mtime_unit_ns)))


def tell(system, what, found):
    if found:
        path, here, there = found[0]
        raise Failed(f"{system.title}: {len(found)} entries {what}, as {path!r}: {here}, {there}")


@functools.cache
def portrait_at(data, name, mtime_unit_ns):
    """What a folder looks like into which that data was put under that name."""
    name = os.fsencode(name)
    below = {os.path.join(name, path): entry for path, entry in portrait(data, mtime_unit_ns).items()}
    return {name: portray(data), **below}


def put_there(system, data, name="data"):
    """What is to be on A once that data was put in."""
    return portrait_at(data, name, system.mtime_unit_ns)


def edited_digest(file, offset, put, skip):
    """The digest of a file in which `put` stands at `offset`, in place of `skip` bytes."""
    digest = hashlib.blake2b()
    with open(file, "rb") as old:
        left = offset
        while left and (piece := old.read(min(left, MIB))):
            digest.update(piece)
            left -= len(piece)
        digest.update(put)
        old.seek(skip, os.SEEK_CUR)
        while piece := old.read(MIB):
            digest.update(piece)
    return digest.hexdigest()


def incoming(system, data):
    """A copy of the data beside the folder of A, to be put in by one rename."""
    copy = system.base / "incoming"
    run(["cp", "-a", data, copy])
    return copy


def put_in(system, copy, name="data"):
    copy.rename(system.folder("a") / name)


def first_sync(system, data, files):
    """A whole tree at once, from A to every other device."""
    copy = incoming(system, data)
    figures = measure(
        system, lambda: put_in(system, copy), lambda: all(
            system.has_tree(name, files) for name in system.devices if name != "a"), pause=0.05)
    check_equal(system, put_there(system, data))
    return figures


def same_file(system, name):
    """Whether that file on B is the one of A, by size and time: it comes by one rename."""
    def arrived():
        here = os.stat(system.folder("a") / name)
        try:
            there = os.stat(system.folder("b") / name)
        except FileNotFoundError:
            return False
        unit = system.mtime_unit_ns
        return here.st_size == there.st_size and here.st_mtime_ns // unit == there.st_mtime_ns // unit
    return arrived


# The groups


def small_files(system, options):
    """1: a tree of small files; 5: its directory renamed."""
    files = options.scaled(20_000)
    data = options.data("small", lambda path: make_tree(path, files, 8 * KIB, seed=1))
    yield 1, "first sync", first_sync(system, data, files)
    if options.wants(5):
        old, new = (lambda device, name=name: system.folder(device) / name for name in ("data", "renamed"))
        figures = measure(
            system, lambda: old("a").rename(new("a")) and None,
            lambda: new("b").exists() and not old("b").exists() and system.has_tree("b", files), pause=0.002)
        check_equal(system, put_there(system, data, "renamed"))
        yield 5, "directory renamed", figures


def large_file(system, options):
    """2: one large random file."""
    size = options.scaled(2 * GIB)
    data = options.data("large", lambda path: (path.mkdir(), make_file(path / "large", size, seed=2)))
    copy = incoming(system, data)
    figures = measure(system, lambda: put_in(system, copy), same_file(system, "data/large"), pause=0.002)
    check_equal(system, put_there(system, data))
    yield 2, "first sync", figures
    if system.title == "cp":
        shutil.rmtree(system.folder("b") / "data")
        system.targets = ("hub", "b")
        yield 2, "written twice", measure(system, lambda: None, same_file(system, "data/large"))


def edits(system, options):
    """3: small edits of a large file; 9: a copy of it."""
    size = options.scaled(GIB)
    data = options.data("edited", lambda path: (path.mkdir(), make_file(path / "large", size, seed=3)))
    copy = incoming(system, data)
    measure(system, lambda: put_in(system, copy), same_file(system, "data/large"))
    rng = random.Random(33)
    file = system.folder("a") / "data" / "large"
    beside = system.base / "beside"
    with open(beside, "wb") as out, open(file, "rb") as old:
        out.write(b"+")
        shutil.copyfileobj(old, out, MIB)

    def insert(at, put):
        beside.rename(file)

    def overwrite(at, put):
        with open(file, "r+b") as out:
            out.seek(at)
            out.write(put)

    if options.wants(3):
        # What stands where, in place of how much.
        changes = (("1 byte inserted at the start", insert, 0, b"+", 0),
                   ("4 KiB overwritten in the middle", overwrite, size // 2 + 123, rng.randbytes(4 * KIB), 4 * KIB),
                   ("1 MiB appended", overwrite, size + 1, rng.randbytes(MIB), 0))
        for step, change, at, put, skip in changes:
            expected = edited_digest(file, at, put, skip)
            # Some tell two versions apart by the second of their times, and by the size.
            time.sleep(1.1)
            figures = measure(system, lambda: change(at, put), same_file(system, "data/large"), pause=0.002)
            check_equal(system)
            if portray(file)[-1] != expected:
                raise Failed(f"{system.title}: the file on a does not hold what was written to it")
            yield 3, step, figures
    if options.wants(9):
        def duplicate():
            run(["cp", file, file.with_name("copy")])
            return time.monotonic()

        expected = portray(file)[-1]
        figures = measure(system, duplicate, same_file(system, "data/copy"), pause=0.002)
        check_equal(system)
        if any(portray(found)[-1] != expected for found in (file, file.with_name("copy"))):
            raise Failed(f"{system.title}: the files on a do not hold what they did")
        yield 9, "1 GiB file copied" if size == GIB else "file copied", figures


def drops(system, options, workload=4, number=200):
    """4: small files that come one at a time, written in place or renamed into it."""
    number = options.scaled(number)
    rng = random.Random(4)
    for step, renamed in (("written plainly", False), ("renamed into place", True)):
        times = []
        dropped = {}
        arrivals = Arrivals(system.folder("b"))
        try:
            for n in range(number):
                name, data = f"{'r' if renamed else 'p'}{n:05}", rng.randbytes(KIB)
                dropped[name] = data
                times.append(drop(system, arrivals, name, data, renamed))
        finally:
            arrivals.close()
        check_equal(system)
        for name, data in dropped.items():
            if (system.folder("a") / name).read_bytes() != data:
                raise Failed(f"{system.title}: {name} on a is not what was written there")
        in_order = sorted(times)
        yield workload, f"1 KiB {step}", {
            "median_ms": statistics.median(times),
            # The least that 99 of a hundred do not exceed.
            "p99_ms": in_order[math.ceil(len(times) * 0.99) - 1],
            "max_ms": in_order[-1], "drops_ms": times,
        }


def drop(system, arrivals, name, data, renamed):
    """Milliseconds from the close, or the rename, on A to all of it on B."""
    source, target = (system.folder(device) / name for device in ("a", "b"))
    if renamed:
        written = source.with_name(f"{name}.part")
        written.write_bytes(data)
        start = time.monotonic()
        written.rename(source)
    else:
        with open(source, "wb") as file:
            file.write(data)
        start = time.monotonic()
    if not system.live:
        system.carry(None)
    while True:
        try:
            if target.stat().st_size == len(data):
                break
        except FileNotFoundError:
            pass
        if time.monotonic() - start > 120:
            raise Failed(f"{system.title}: {name} did not come in 120 s")
        for party in system.parties.values():
            party.check()
        arrivals.wait(0.5)
    ms = (time.monotonic() - start) * 1000
    if target.read_bytes() != data:
        raise Failed(f"{system.title}: {name} arrived damaged")
    return ms


def at_rest(system, options):
    """6: many files at rest; 7: a restart with one change made meanwhile."""
    files = options.scaled(100_000)
    data = options.data("many", lambda path: make_tree(path, files, KIB, seed=6))
    yield 6, "first sync", first_sync(system, data, files)
    if options.wants(6) and system.live:
        yield 6, "at rest", rest_minute(system, options)
    if options.wants(7):
        yield 7, "restart, one change", restart(system)


def rest_minute(system, options):
    """What each party takes in a minute in which nothing happens."""
    secs = max(5, options.scaled(60))
    time.sleep(min(10, secs))
    parties = system.measured()
    for party in parties.values():
        party.reset_peak()
    before = {name: party.cpu_secs() for name, party in parties.items()}
    time.sleep(secs)
    for party in parties.values():
        party.check()
    return {
        "cpu_secs_per_minute": {
            name: (party.cpu_secs() - before[name]) * 60 / secs for name, party in parties.items()},
        "resident_mib": {name: party.resident_mib() for name, party in parties.items()},
    }


def restart(system):
    if system.live:
        system.stop_device("a")
    changed = next((system.folder("a") / "data").glob("d*/f*"))
    content = b"changed while nobody looked\n" * 50
    changed.write_bytes(content)
    name = str(changed.relative_to(system.folder("a")))
    figures = measure(
        system, lambda: system.start_device("a") if system.live else None, same_file(system, name), pause=0.002)
    check_equal(system)
    if changed.read_bytes() != content:
        raise Failed(f"{system.title}: {name} on a is not what was written there")
    return figures


def real_tree(system, options):
    """8: a real source tree."""
    def make(path):
        path.mkdir()
        copy_sources(options.sources, path)

    data = options.data("real", make)
    if "real" not in options.counts:
        options.counts["real"] = count(data)
    files = options.counts["real"]
    figures = first_sync(system, data, files)
    yield 8, f"{files:,} files", figures


def million(system, options):
    """10: a million small files."""
    files = options.scaled(1_000_000)
    data = options.data("million", lambda path: make_tree(path, files, 100, seed=10, per_directory=1000))
    yield 10, "first sync", first_sync(system, data, files)
    if system.live:
        yield 10, "at rest", rest_minute(system, options)


def far_link(system, options):
    """11: a large file, small files and drops over a far link."""
    size = options.scaled(128 * MIB)
    large = options.data("far", lambda path: (path.mkdir(), make_file(path / "large", size, seed=11)))
    copy = incoming(system, large)
    figures = measure(system, lambda: put_in(system, copy), same_file(system, "data/large"), pause=0.002)
    check_equal(system, put_there(system, large))
    hops = 2 if system.hub else 1
    figures["share_of_link"] = size * 8 / 1e6 / options.far["mbit"] / figures["secs"]
    figures["hops"] = hops
    yield 11, "128 MiB file" if size == 128 * MIB else "file", figures
    files = options.scaled(2_000)
    small = options.data("far-small", lambda path: make_tree(path, files, 8 * KIB, seed=12))
    copy = incoming(system, small)
    figures = measure(
        system, lambda: put_in(system, copy, "small"), lambda: system.has_tree("b", files + 1), pause=0.02)
    check_equal(system, {**put_there(system, large), **put_there(system, small, "small")})
    yield 11, f"{files:,} small files", figures
    yield from drops(system, options, workload=11, number=20)


def ten_devices(system, options):
    """12: one of ten devices drops files."""
    files = options.scaled(2_000)
    data = options.data("ten", lambda path: make_tree(path, files, 8 * KIB, seed=12))
    copy = incoming(system, data)
    others = [name for name in system.devices if name != "a"]
    first = None
    waiting = list(others)

    def arrived():
        nonlocal first
        for name in list(waiting):
            if system.has_tree(name, files):
                waiting.remove(name)
                first = first or time.monotonic() - start
        return not waiting

    start = 0.0

    def change():
        nonlocal start
        start = time.monotonic()
        put_in(system, copy)

    figures = measure(system, change, arrived, pause=0.02)
    check_equal(system, put_there(system, data))
    if system.live:
        figures["first_device_secs"] = first
    yield 12, f"{len(system.devices)} devices", figures


class Group:
    """Workloads that share a world, the systems that can take part, and the worlds they need."""

    def __init__(self, play, workloads, worlds=({},), without=()):
        self.play = play
        self.workloads = workloads
        self.worlds = worlds
        # By workload: who cannot do it, or of whom it would say nothing.
        self.without = dict(without)


TEN = tuple("abcdefghij")
RUN = ("rsync", "unison", "cp")
GROUPS = (
    Group(small_files, (1, 5), without={5: ("cp",)}),
    Group(large_file, (2,)),
    Group(edits, (3, 9)),
    Group(drops, (4,), without={4: ("cp",)}),
    Group(at_rest, (6, 7)),
    # What a daemon outside of a chroot is sent, it writes with links that are not those of A.
    Group(real_tree, (8,), without={8: ("rsync",)}),
    Group(million, (10,)),
    Group(far_link, (11,), worlds=({"far": True},), without={11: ("cp",)}),
    Group(ten_devices, (12,), worlds=({}, {"devices": TEN}), without={12: RUN}),
)
USUAL = (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12)
# What a small box is asked for.
CONFINED = (1, 2, 4, 6)
