"""A real SLURM of several nodes on one Linux machine, for tests and for trying things by hand. Needs root.

    python tests/cluster/slurm_cluster.py up        munge, slurmctld and 4 slurmd; prints how to use them
    python tests/cluster/slurm_cluster.py run COMMAND ...      a command on the login node
    python tests/cluster/slurm_cluster.py down      ends them again, and only them

Each node is a network, process and host-name namespace with an address of its own behind a software bridge, so power loss
and a pulled cable are real. Debian packages: slurmctld slurmd slurm-client munge iproute2.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # run by its path: Python looks beside it, not in the project's folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.helpers import wait_for
from tests.patience import limit

HERE = Path(tempfile.gettempdir()) / f"slurm-by-hand.{os.getuid()}"
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "unshare", "runuser")
NETWORK = "10.77.0"
GPU_KIND, GPUS = "a100", ("/dev/zero", "/dev/full")  # of each node

SLURM_CONF = """
ClusterName=test
SlurmctldHost=ctl
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.sock,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/ctld.pid
SlurmdPidFile={folder}/run/%n.pid
SlurmctldLogFile={folder}/log/ctld.log
SlurmdLogFile={folder}/log/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
GresTypes=gpu
MailProg=/bin/true
SchedulerParameters=bf_interval=5,sched_interval=2,batch_sched_delay=0
ReturnToService=2
KillWait=5
SlurmdTimeout=6
MessageTimeout=5
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/log/jobcomp.txt
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
{nodes}
PartitionName=debug Nodes=ALL Default=YES PriorityTier=1 GraceTime=30 MaxTime=2:00:00
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""

# The first process of a node: as init does, it collects what ends, and lives as long as the node is powered.
NODE_INIT = (
    "mount --bind {folder}/hosts /etc/hosts; hostname {node}; SLURM_CONF={folder}/slurm.conf slurmd -N {node} {options}; "
    "while :; do wait -n || sleep .3; done"
)


def missing_programs() -> str | None:
    """Which programs that a cluster needs are not installed, in one line; None where all are."""
    if missing := [program for program in PROGRAMS if not shutil.which(program)]:
        return f"not installed: {', '.join(missing)} (apt install slurmctld slurmd slurm-client munge iproute2)"
    return None


def why_not() -> str | None:
    """Why no cluster can be made here, in one line; None where it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a SLURM for tests needs root on Linux"
    if missing := missing_programs():
        return missing
    probe = f"slurm-probe-{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False).returncode:
        return "the kernel allows no network namespaces here"
    subprocess.run(["ip", "netns", "delete", probe], check=False)
    return None


@dataclass(frozen=True)
class SlurmCluster:
    """A running cluster whose files are in `folder`; `tag` begins the names of its network namespaces."""

    folder: Path
    tag: str
    nodes: tuple[str, ...]

    @classmethod
    def up(cls, folder: Path, nodes: int = 4, cpus: int = 4) -> SlurmCluster:
        """Start it and wait until every node is idle (under a second)."""
        cluster = cls(folder, f"s{os.getpid()}", tuple(f"node{number}" for number in range(1, nodes + 1)))
        cluster._write_files(cpus)
        try:
            cluster._start()
        except BaseException:  # half of it may be up
            cluster.down()
            raise
        return cluster

    @classmethod
    def find(cls, folder: Path) -> SlurmCluster:
        kept = json.loads((folder / "cluster.json").read_text())
        return cls(folder, kept["tag"], tuple(kept["nodes"]))

    def down(self) -> None:
        """End every process of the cluster, jobs included, and remove its network and files."""
        for name in (*(f"{node}.unshare" for node in self.nodes), "ctld", "munged"):
            if pid := self._pid(name):
                _kill(pid)
        for name in (*self.nodes, "ctl", "sw"):
            subprocess.run(["ip", "netns", "delete", f"{self.tag}-{name}"], capture_output=True, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(
        self,
        command: Sequence[str],
        *,
        cwd: Path | None = None,
        extra: Mapping[str, str] | None = None,
        check: bool = True,
        timeout: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the login node, as a user of the cluster. timeout: seconds on a quiet machine."""
        done = subprocess.run(
            self.login(command),
            cwd=cwd,
            env={**os.environ, **(extra or {})},
            capture_output=True,
            text=True,
            timeout=limit(timeout),
            check=False,
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def login(self, command: Sequence[str]) -> list[str]:
        """`command` wrapped so that it runs on the login node."""
        inside = f'mount --bind {self.folder}/hosts /etc/hosts; hostname ctl; exec "$@"'
        conf = f"SLURM_CONF={self.folder}/slurm.conf"
        return [
            *("ip", "netns", "exec", f"{self.tag}-ctl"),
            *("unshare", "-um", "env", conf, "sh", "-c", inside, "_", *command),
        ]

    # What can happen to a node

    def power_on(self, node: str, *options: str) -> None:
        """`options`: of slurmd."""
        self.plug(node)
        process = subprocess.Popen(
            [
                *("ip", "netns", "exec", f"{self.tag}-{node}", "unshare", "-umpf", "--kill-child", "--mount-proc"),
                *("bash", "-c", NODE_INIT.format(folder=self.folder, node=node, options=" ".join(options))),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        (self.folder / "run" / f"{node}.unshare.pid").write_text(str(process.pid))

    def power_off(self, node: str) -> None:
        """Every process of the node is gone at once, and no packet says good-bye."""
        self.unplug(node)
        if pid := self._pid(f"{node}.unshare"):
            _kill(pid)  # the kernel kills its child, the namespace's init, and with it the namespace

    def reboot(self, node: str) -> None:
        """Gone, and back at once: SLURM has not missed it yet when its slurmd says that it was started anew (-b)."""
        self.power_off(node)
        # Its network namespace stays: a slurmd that is still dying there holds the port that the new one needs.
        wait_for(lambda: not self.processes(node, "slurm"), f"the end of what ran on {node}")
        self.power_on(node, "-b")

    def kill_slurmd(self, node: str) -> None:
        """The daemon alone: jobs on the node go on, under their own slurmstepd."""
        for pid in self.processes(node, f"slurmd -N {node}"):
            with suppress(FileNotFoundError, ProcessLookupError):  # a child of the node's init that has ended since
                if Path(f"/proc/{pid}/comm").read_text().strip() == "slurmd":
                    _kill(pid)

    def start_slurmd(self, node: str) -> None:
        _check([*self._inside(node), "env", f"SLURM_CONF={self.folder}/slurm.conf", "slurmd", "-N", node])

    def hide(self, node: str, folder: Path) -> None:
        """From now on an empty file system lies over `folder` on that node."""
        _check([*self._inside(node), "mount", "-t", "tmpfs", "none", str(folder)])

    def show_again(self, node: str, folder: Path) -> None:
        _check([*self._inside(node), "umount", str(folder)])

    def _inside(self, node: str) -> list[str]:
        """The beginning of a command that runs in the namespaces of a node."""
        parent = self._pid(f"{node}.unshare")
        init = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()[0]
        return ["nsenter", "--target", init, "--net", "--pid", "--mount", "--uts", "--"]

    def unplug(self, node: str) -> None:
        _check(["ip", "-n", f"{self.tag}-sw", "link", "set", f"v-{node}", "down"])

    def plug(self, node: str) -> None:
        _check(["ip", "-n", f"{self.tag}-sw", "link", "set", f"v-{node}", "up"])

    def processes(self, node: str, word: str) -> list[int]:
        """Process ids, as seen from outside, of the node's processes with `word` in their command line."""
        found = []
        namespace = Path(f"/run/netns/{self.tag}-{node}").stat().st_ino
        for entry in Path("/proc").iterdir():
            try:
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode() if entry.name.isdigit() else ""
                if word in words and (entry / "ns" / "net").stat().st_ino == namespace:
                    found.append(int(entry.name))
            except OSError:
                continue
        return sorted(found)

    # What SLURM says

    def state(self, job: str) -> str:
        """A job's state in SLURM's words (PENDING, RUNNING, COMPLETED ...)."""
        return self._job(job).get("JobState", "UNKNOWN")

    def field(self, job: str, name: str) -> str:
        """Raises AssertionError where slurmctld, which may be busy for a moment, does not answer for long."""
        found: dict[str, str] = {}

        def answered() -> bool:
            found.update(self._job(job))
            return name in found

        wait_for(answered, f"slurmctld to tell {name} of job {job}", 30)
        return found[name]

    def _job(self, job: str) -> dict[str, str]:
        """What scontrol shows of a job; nothing where slurmctld does not answer."""
        text = self.run(["scontrol", "show", "job", job, "--oneliner"], check=False).stdout
        return dict(word.partition("=")[::2] for word in text.split())

    def wait_for_nodes(self, seconds: float = 60) -> None:
        def states() -> list[str]:
            return self.run(["sinfo", "-hNp", "debug", "-o", "%T"], check=False).stdout.split()

        wait_for(lambda: states() == ["idle"] * len(self.nodes), "all nodes to be idle", seconds)

    def _pid(self, name: str) -> int | None:
        try:
            return int((self.folder / "run" / f"{name}.pid").read_text())
        except (FileNotFoundError, ValueError):
            return None

    def _start(self) -> None:
        self._make_network()
        munge = ["--socket={0}/run/munge.sock", "--pid-file={0}/run/munged.pid", "--log-file={0}/run/munged.log"]
        munge += ["--key-file={0}/munge.key", "--seed-file={0}/run/seed"]
        _check(["runuser", "-u", "munge", "--", "munged", *(option.format(self.folder) for option in munge)])
        self.run(["slurmctld"])
        for node in self.nodes:
            self.power_on(node)
        (self.folder / "cluster.json").write_text(json.dumps({"tag": self.tag, "nodes": self.nodes}))

    def _write_files(self, cpus: int) -> None:
        folder = self.folder
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)
        for name in ("run", "log", "state", "spool"):
            (folder / name).mkdir()
        (folder / "munge.key").write_bytes(os.urandom(1024))
        for path in (folder, folder / "run", folder / "munge.key"):
            shutil.chown(path, "munge", "munge")
        (folder / "munge.key").chmod(0o400)
        addresses = {node: f"{NETWORK}.{number}" for number, node in enumerate(self.nodes, 11)}
        hosts = {"localhost": "127.0.0.1", "ctl": f"{NETWORK}.1", **addresses}
        (folder / "hosts").write_text("".join(f"{address} {name}\n" for name, address in hosts.items()))
        # Without it slurmd dies inside `ip netns exec`.
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        # SLURM wants a device for each GPU, of any kind: it counts them, and shows their numbers to jobs.
        (folder / "gres.conf").write_text("".join(f"Name=gpu Type={GPU_KIND} File={file}\n" for file in GPUS))
        resources = f"CPUs={cpus} RealMemory=4000 Gres=gpu:{GPU_KIND}:{len(GPUS)}"
        lines = [f"NodeName={name} NodeAddr={where} {resources}" for name, where in addresses.items()]
        (folder / "slurm.conf").write_text(SLURM_CONF.format(folder=folder, nodes="\n".join(lines)))

    def _make_network(self) -> None:
        switch = f"{self.tag}-sw"
        _check(["ip", "netns", "add", switch])
        _check(["ip", "-n", switch, "link", "add", "br0", "type", "bridge"])
        _check(["ip", "-n", switch, "link", "set", "br0", "up"])
        for name, number in (("ctl", 1), *((node, number) for number, node in enumerate(self.nodes, 11))):
            inside, port = f"{self.tag}-{name}", f"v-{name}"
            _check(["ip", "netns", "add", inside])
            _check(["ip", "-n", switch, *f"link add {port} type veth peer name eth0 netns {inside}".split()])
            _check(["ip", "-n", switch, *f"link set {port} master br0 up".split()])
            _check(["ip", "-n", inside, *["link", "set", "lo", "up"]])
            _check(["ip", "-n", inside, *f"addr add {NETWORK}.{number}/24 dev eth0".split()])
            _check(["ip", "-n", inside, *["link", "set", "eth0", "up"]])


def _check(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def main(words: Sequence[str]) -> int:
    if words[:1] == ["up"]:
        if reason := why_not():
            print(f"error: {reason}", file=sys.stderr)
            return 2
        if (HERE / "cluster.json").exists():
            print(f"error: a cluster is up already in {HERE}: end it with 'down' first", file=sys.stderr)
            return 2
        cluster = SlurmCluster.up(HERE)
        cluster.wait_for_nodes()
        print(f"up: {', '.join(cluster.nodes)}; its logs are in {HERE}/log. A command on its login node:")
        print(f"  {sys.executable} {sys.argv[0]} run sinfo")
        return 0
    if words[:1] == ["down"]:
        if (HERE / "cluster.json").exists():
            SlurmCluster.find(HERE).down()
        return 0
    if words[:1] == ["run"] and len(words) > 1:
        command = SlurmCluster.find(HERE).login(words[1:])
        os.execvp(command[0], command)
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
