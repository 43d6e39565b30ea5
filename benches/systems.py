"""The systems that are compared, each with devices that have a folder of their own.

Some watch their folders (PiCloud, Syncthing), some are run (rsync, Unison, cp): `carry` brings what
changed on A to the others in either case, and returns when `arrived` says so.
"""

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from lab import BIN, RUN_LIMIT_SECS, WAIT_SECS, Failed, Network, Party, family, run, until


class System:
    """Devices, and a hub between them, in `base`. Names of parties: `hub` and those of the devices."""

    title = ""
    # Whether it notices changes by itself.
    live = False
    # Whether what A sends rests on a hub before it comes to B.
    hub = True
    # What it keeps of a modification time.
    mtime_unit_ns = 1

    def __init__(self, base, devices=("a", "b"), apart=False, far=None):
        self.base = base
        self.devices = tuple(devices)
        base.mkdir()
        names = [*(("hub",) if self.hub else ()), *devices, *(("link",) if far else ())]
        self.far = far
        self.network = Network(names, apart)
        self.parties = {name: Party(name, self.network) for name in names}
        try:
            for name in devices:
                self.folder(name).mkdir(parents=True)
            self.begin()
        except BaseException:
            self.stop()
            raise

    def begin(self):
        """Starts what has to run, and waits until it does."""

    def carry(self, arrived, pause=0.02):
        raise NotImplementedError

    def stop(self):
        for party in self.parties.values():
            party.stop()
        self.network.close()

    def folder(self, name):
        return self.base / name / "PiCloud"

    def log(self, name):
        return self.base / f"{name}.log"

    def measured(self):
        return {name: party for name, party in self.parties.items() if name != "link"}

    def reach(self, party, port):
        """HOST:PORT at which the others reach that port of a party: over the far link if there is one."""
        address = self.network.address(party)
        if self.far is None:
            return f"{address}:{port}"
        here, entry = self.network.address("link"), self.network.port("link", port)
        self.parties["link"].start(
            [sys.executable, "-B", Path(__file__).with_name("link.py"), f"{here}:{entry}", f"{address}:{port}",
             self.far["rtt_ms"], self.far["mbit"]], self.log("link"),
        )
        self.await_listener("link", entry)
        return f"{here}:{entry}"

    def await_listener(self, party, port):
        def listens():
            self.parties[party].check()
            return self.network.listens(party, port)

        until(f"{self.title} to listen on {party}", listens)

    def has_tree(self, name, files):
        """Whether that device has this many files, all of them whole."""
        return True

    def rest(self):
        """Waits until nothing is under way any more."""

    def carry_by_itself(self, arrived, pause):
        end = time.monotonic() + RUN_LIMIT_SECS
        while True:
            for party in self.parties.values():
                party.check()
            if arrived():
                return
            if time.monotonic() > end:
                raise Failed(f"{self.title}: not all arrived in {RUN_LIMIT_SECS} s")
            time.sleep(pause)


class PiCloud(System):
    """A server and its devices, built from the release binaries."""

    title = "picloud"
    live = True

    def __init__(self, base, devices=("a", "b"), apart=False, far=None, binaries=BIN, confine=None):
        self.binaries = binaries
        self.confine = confine
        self.agents = {}
        super().__init__(base, devices, apart, far)

    def begin(self):
        address, port = self.network.address("hub"), self.network.port("hub", 46000)
        config = self.base / "server.toml"
        config.write_text(
            f'[server]\nlisten = "{address}:{port}"\npublic = "{self.reach("hub", port)}"\n'
            f'data_dir = "{self.base / "server"}"\n'
        )
        self.parties["hub"].start(
            [self.binaries / "picloud-server", "--config", config, "run"], self.log("hub"),
            prefix=self.confine.prefix() if self.confine else (),
        )
        self.await_listener("hub", port)
        for name in self.devices:
            self.join(name)
        self.rest()

    def join(self, name):
        """A further device, once its agent says that it is in sync or at work."""
        if name not in self.parties:
            self.parties[name] = Party(name, self.network)
            self.folder(name).mkdir(parents=True)
        link = run([self.binaries / "picloud-server", "--config", self.base / "server.toml", "invite",
                    "bench"]).strip()
        self.parties[name].run([self.binaries / "picloud", "--config", self.config(name), "join", link,
                                "--folder", self.folder(name), "--device", name])
        self.start_device(name)
        until(f"agent {name}", lambda: self.status(name).get("state") in ("in-sync", "syncing"))

    def start_device(self, name):
        self.agents[name] = self.parties[name].start(
            [self.binaries / "picloud-agent", "--config", self.config(name)], self.log(name)
        )

    def stop_device(self, name):
        self.parties[name].end(self.agents.pop(name))

    def config(self, name):
        return self.base / name / "agent.toml"

    def status(self, name):
        said = subprocess.run(
            [self.binaries / "picloud", "--config", self.config(name), "status", "--json"],
            capture_output=True, text=True,
        )
        try:
            return json.loads(said.stdout.splitlines()[0])
        except (IndexError, ValueError):
            return {}

    def rest(self):
        until("all devices in sync", lambda: all(
            self.status(name).get("state") == "in-sync" for name in self.agents), limit=600)

    def sync(self, name, limit=1800):
        """`picloud sync` on that device: all of it on the server, all of the server's here."""
        run([self.binaries / "picloud", "--config", self.config(name), "sync", "--timeout", limit])

    def ask(self, name):
        """Its status, from the agent itself: a program begun twenty times a second takes what it measures."""
        try:
            with socket.socket(socket.AF_UNIX) as agent:
                agent.settimeout(30)
                agent.connect(str(self.base / name / "agent.sock"))
                agent.sendall(b'{"type":"status"}\n')
                with agent.makefile() as lines:
                    return json.loads(lines.readline())
        except (OSError, ValueError) as error:
            raise Failed(f"{self.title}: the agent of {name} does not answer: {error}") from None

    def has_tree(self, name, files):
        folders = self.ask(name).get("folders") or [{}]
        return folders[0].get("state") == "in-sync" and folders[0].get("files") == files

    def carry(self, arrived, pause=0.02):
        self.carry_by_itself(arrived, pause)


class Syncthing(System):
    """A hub and devices that know only the hub; nothing is announced, looked up, mapped or reported."""

    title = "syncthing"
    live = True
    # The shortest time it may wait after an event, in seconds: the first that this version starts with.
    # Older versions take whole seconds only.
    delays = ("0.01", "1")

    def begin(self):
        self.ids = {}
        self.instances = {}
        self.sockets = {name: self.base / name / "st.sock" for name in ("hub", *self.devices)}
        self.folder("hub").mkdir(parents=True)
        for name in self.sockets:
            home = self.base / name / "home"
            run(["syncthing", "generate", "--home", home, "--no-default-folder", "--skip-port-probing"])
            self.ids[name] = run(["syncthing", "--home", home, "--device-id"]).strip()
            (self.folder(name) / ".stfolder").mkdir()
        port = self.network.port("hub", 22000)
        reach = self.reach("hub", port)
        listen = f"tcp://{self.network.address('hub')}:{port}"
        for delay in self.delays:
            self.configure("hub", dict.fromkeys(self.devices, "dynamic"), listen, delay)
            try:
                self.start_device("hub")
            except Failed:
                if delay == self.delays[-1]:
                    raise
                self.stop_device("hub")
            else:
                type(self).delays = (delay,)
                break
        for name in self.devices:
            self.configure(name, {"hub": f"tcp://{reach}"}, "", self.delays[0])
            self.start_device(name)
        for name in self.devices:
            until(f"{name} to reach the hub", lambda: self.connected(name))
        self.rest()

    def configure(self, name, others, listen, delay):
        peers = "".join(
            f'<device id="{self.ids[peer]}" name="{peer}" compression="metadata"><address>{address}</address>'
            "</device>" for peer, address in {name: "dynamic", **others}.items()
        )
        members = "".join(f'<device id="{self.ids[peer]}"/>' for peer in (name, *others))
        (self.base / name / "home" / "config.xml").write_text(f"""<configuration version="36">
  <folder id="bench" label="bench" path="{self.folder(name)}" type="sendreceive" rescanIntervalS="0"
    fsWatcherEnabled="true" fsWatcherDelayS="{delay}" ignorePerms="false" autoNormalize="true">
    <filesystemType>basic</filesystemType>{members}<minDiskFree unit="%">0</minDiskFree>
  </folder>
  {peers}
  <gui enabled="true" tls="false"><address>{self.sockets[name]}</address><apikey>bench</apikey></gui>
  <options>
    <listenAddress>{listen}</listenAddress>
    <globalAnnounceEnabled>false</globalAnnounceEnabled>
    <localAnnounceEnabled>false</localAnnounceEnabled>
    <relaysEnabled>false</relaysEnabled>
    <natEnabled>false</natEnabled>
    <stunServer></stunServer>
    <stunKeepaliveStartS>0</stunKeepaliveStartS>
    <urAccepted>-1</urAccepted>
    <autoUpgradeIntervalH>0</autoUpgradeIntervalH>
    <crashReportingEnabled>false</crashReportingEnabled>
    <startBrowser>false</startBrowser>
    <setLowPriority>false</setLowPriority>
    <reconnectionIntervalS>1</reconnectionIntervalS>
  </options>
</configuration>
""")

    def start_device(self, name):
        self.sockets[name].unlink(missing_ok=True)
        self.instances[name] = self.parties[name].start(
            ["syncthing", "serve", "--home", self.base / name / "home", "--no-browser", "--no-upgrade",
             "--no-restart"],
            self.log(name), env={"HOME": str(self.base / name)},
        )
        until(f"syncthing {name}", lambda: self.answers(name))

    def stop_device(self, name):
        self.parties[name].end(self.instances.pop(name))

    def answers(self, name):
        self.instances[name].check()
        return self.ask(name, "/rest/system/ping")

    def ask(self, name, path):
        connection = UnixHttp(self.sockets[name])
        try:
            connection.request("GET", path, headers={"X-API-Key": "bench"})
            answer = connection.getresponse()
            return json.loads(answer.read()) if answer.status == 200 else None
        except (OSError, ValueError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def connected(self, name):
        peers = (self.ask(name, "/rest/system/connections") or {}).get("connections", {})
        return peers.get(self.ids["hub"], {}).get("connected", False)

    def state(self, name):
        return self.ask(name, "/rest/db/status?folder=bench") or {}

    def rest(self):
        until("all of Syncthing idle", lambda: all(
            self.is_idle(self.state(name)) for name in self.instances), limit=600)

    @staticmethod
    def is_idle(state):
        return state.get("state") == "idle" and state.get("needTotalItems") == 0

    def has_tree(self, name, files):
        state = self.state(name)
        return self.is_idle(state) and state["localFiles"] + state["localSymlinks"] == files

    def carry(self, arrived, pause=0.02):
        self.carry_by_itself(arrived, pause)


class UnixHttp(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=10)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


class Rsync(System):
    """rsync over its daemon."""

    def daemon(self, party, target):
        address, port = self.network.address(party), self.network.port(party, 873)
        config = self.base / "rsyncd.conf"
        # Only root may name an owner, and without one a daemon of root's writes as nobody.
        owner = "uid = 0\ngid = 0\n" if os.getuid() == 0 else ""
        config.write_text(
            f"port = {port}\naddress = {address}\nuse chroot = no\nmax connections = 0\n{owner}"
            # It would ask for the name of each client, of a name server that cannot be reached.
            "reverse lookup = no\n"
            # Its children outlive a kill of this program, until they notice that the others are gone.
            "timeout = 60\n"
            f"lock file = {self.base / 'rsync.lock'}\n[drive]\npath = {target}\nread only = no\n"
        )
        self.parties[party].start(["rsync", "--daemon", "--no-detach", "--config", config], self.log(party))
        self.await_listener(party, port)
        self.url = f"rsync://{self.reach(party, port)}/drive/"

    def rest(self):
        # A daemon's child may be about to end, and counts only when it has.
        until("rsync's daemon to have ended its children", lambda: all(
            family(process.pid) == [process.pid] for party in self.parties.values() for process in party.running))

    def copy(self, party, *ends):
        self.parties[party].finish(["rsync", "-a", "--delete", *ends], self.log(f"{party}-run"))


class RsyncOneHop(Rsync):
    """A pushes to B's daemon."""

    title = "rsync"
    hub = False

    def begin(self):
        self.daemon("b", self.folder("b"))

    def carry(self, arrived, pause=0.02):
        self.copy("a", f"{self.folder('a')}/", self.url)


class RsyncTwoHops(Rsync):
    """A pushes to the hub's daemon, and then every other device pulls from it."""

    title = "rsync-two-hops"

    def begin(self):
        self.folder("hub").mkdir(parents=True)
        self.daemon("hub", self.folder("hub"))

    def carry(self, arrived, pause=0.02):
        self.copy("a", f"{self.folder('a')}/", self.url)
        pulls = [
            (name, self.parties[name].start(
                ["rsync", "-a", "--delete", self.url, f"{self.folder(name)}/"], self.log(f"{name}-run")))
            for name in self.devices if name != "a"
        ]
        try:
            for name, pull in pulls:
                cpu, peak = pull.finish()
                self.parties[name].spent += cpu
                self.parties[name].highest = max(self.parties[name].highest, peak)
        finally:
            for name, pull in pulls:
                self.parties[name].end(pull)


class Unison(System):
    """Unison over a socket, A to B."""

    title = "unison"
    hub = False
    mtime_unit_ns = 1_000_000_000

    @staticmethod
    def program():
        return shutil.which("unison") or shutil.which("unison-2.52")

    def begin(self):
        address, port = self.network.address("b"), self.network.port("b", 5000)
        self.parties["b"].start(
            [self.program(), "-socket", port, "-listen", address], self.log("b"), env=self.home("b")
        )
        self.await_listener("b", port)
        self.url = f"socket://{self.reach('b', port)}/{self.folder('b')}"

    def home(self, name):
        home = str(self.base / name)
        return {"HOME": home, "UNISON": f"{home}/unison", "UNISONLOCALHOSTNAME": name}

    def carry(self, arrived, pause=0.02):
        self.parties["a"].finish(
            [self.program(), self.folder("a"), self.url, "-ui", "text", "-batch", "-auto", "-silent",
             "-times", "-perms", "0o777", "-confirmbigdel=false", "-log=false"],
            self.log("a"), env=self.home("a"),
        )


class Cp(System):
    """The floor: what the disk and the file system take by themselves."""

    title = "cp"
    hub = False

    # To where it copies.
    targets = ("b",)

    def carry(self, arrived, pause=0.02):
        for name in self.targets:
            self.folder(name).mkdir(parents=True, exist_ok=True)
            self.run("cp", "-a", "--update", f"{self.folder('a')}/.", f"{self.folder(name)}/")
        self.run("sync", "-f", self.folder("b"))

    def run(self, *command):
        self.parties["a"].finish(command, self.log("a"))


def peers():
    """The systems whose programs are installed, by the names that `--systems` takes."""
    found = {"picloud": PiCloud}
    if shutil.which("rsync"):
        found |= {"rsync": RsyncOneHop, "rsync-two-hops": RsyncTwoHops}
    if Unison.program():
        found["unison"] = Unison
    if shutil.which("syncthing"):
        found["syncthing"] = Syncthing
    return found | {"cp": Cp}
