"""A real Slurm of two nodes on this machine, one for each test: two slurmd, one slurmctld, one munged.

The nodes n1 and n2 have 2 CPUs each, of the same cores: work is slow, scheduling is real. The partition `low` is the
default; `high` preempts it by requeue, with 60 s of grace.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from jobs import ROOT

CONFIGURATION = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
FirstJobId={job}  # ports follow from the numbers of jobs, and other workers of the tests run other clusters
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
SlurmdTimeout=20
KillWait=60
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
MpiDefault=none
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=4000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=4000
PartitionName=low Nodes=n1,n2 Default=YES MaxTime=1:00:00 State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes=n1,n2 MaxTime=1:00:00 State=UP PriorityTier=10 PreemptMode=OFF
"""
TINY = (
    *("data=mixture", "data.batch_size=256", "network.width=8", "trainer.accelerator=cpu", "callbacks.samples=null"),
    *("callbacks.validation=null", "callbacks.progress=null", "callbacks.checkpoint.every_n_steps=100"),
    "callbacks.metrics.every_n_steps=1",
)
"""A training that only trains, saves often and logs every step."""
PATIENCE = 300.0  # seconds, of a machine that does other things


class Cluster:
    """The commands of a Slurm that has been started.

    Args:
        folder: state, logs and slurm.conf of the cluster.
        work: the folder to submit from.
    """

    def __init__(self, folder, work):
        self.folder, self.work = Path(folder), Path(work)
        self.tiny = TINY
        self.mark = f"SLURM_CONF={self.folder}/slurm.conf"
        self.environment = {
            **os.environ,
            "SLURM_CONF": f"{self.folder}/slurm.conf",
            "PATH": f"{Path(sys.executable).parent}:/usr/sbin:{os.environ['PATH']}",
            "MASTER_ADDR": "127.0.0.1",  # no name service knows the nodes
            "OMP_NUM_THREADS": "1",
            "WANDB_MODE": "offline",
        }

    def start(self):
        """Start the daemons and wait for both nodes."""
        with socket.socket() as a, socket.socket() as b, socket.socket() as c:
            for each in (a, b, c):
                each.bind(("127.0.0.1", 0))
            ports = [each.getsockname()[1] for each in (a, b, c)]
        for name in ("state", "spool.n1", "spool.n2"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        job = 1 + 100 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
        host = socket.gethostname().partition(".")[0]
        (self.folder / "slurm.conf").write_text(
            CONFIGURATION.format(host=host, folder=self.folder, ports=ports, job=job)
        )
        munged = [
            f"--{name}={self.folder}/munge.{name.partition('-')[0]}" for name in ("socket", "key-file", "pid-file")
        ]
        munged += [f"--{name}={self.folder}/munge.{name.partition('-')[0]}" for name in ("log-file", "seed-file")]
        self.run("munged", "--force", *munged)
        self.run("slurmctld")
        for node in ("n1", "n2"):
            self.run("slurmd", "-N", node)
        self.until(lambda: self.run("sinfo", "-h", "-p", "low", "-t", "idle", "-o", "%D").strip() == "2")
        return self

    def stop(self):
        """Kill every process of the cluster."""
        while self.kill(""):
            time.sleep(0.1)

    def kill(self, word):
        """Kill the cluster's processes that have a word in their command; returns how many there were."""
        found = self.processes(word)
        for process in found:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        return len(found)

    def processes(self, word):
        """The numbers of the cluster's processes, daemons and jobs, that have a word in their command."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                environment = (process / "environ").read_bytes().split(b"\0")  # a daemon hands it to its jobs
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ")
                if self.mark.encode() in environment and word.encode() in command:
                    found.append(int(process.name))
        return found

    def run(self, *command):
        """The output of a command."""
        done = subprocess.run(
            command, cwd=self.work, env=self.environment, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def until(self, what):
        """Wait for a condition."""
        latest = time.monotonic() + PATIENCE
        while not what():
            assert time.monotonic() < latest, self.logs()
            time.sleep(0.3)

    def submit(self, *arguments, options=()):
        """Submit the shipped script; returns the number of the job."""
        return self.run("sbatch", "--parsable", *options, "slurm/train.sbatch", *TINY, *arguments).strip()

    def folder_of(self, job):
        """The run folder of a job."""
        return self.work / f"runs/slurm_{job}"

    def job(self, job):
        """What Slurm says of a job, by name: JobState, Restarts, ExitCode and others."""
        words = self.run("scontrol", "show", "job", "-o", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def logs(self):
        """What the daemons and the jobs have said last."""
        files = [*self.folder.glob("*.log"), *self.work.glob("slurm-*.out"), *self.work.glob("runs/*/FAILED")]
        return "\n".join(f"--- {file.name}\n{file.read_text()[-3000:]}" for file in files)

    def wait(self, job, state, restarts=0):
        """Wait until the job has this state, after so many restarts at least."""

        def there():
            now = self.job(job)
            bad = now["JobState"] in ("FAILED", "TIMEOUT", "CANCELLED") and now["JobState"] != state
            assert not bad, f"{now}\n{self.logs()}"
            return now["JobState"] == state and int(now["Restarts"]) >= restarts

        self.until(there)

    def restarted(self, job, restarts):
        """Wait until the job waits in the queue again, and start it at once: Slurm makes it wait for two minutes."""
        self.wait(job, "PENDING", restarts)
        time.sleep(2)  # Slurm revokes the credentials of starts within the second of the requeue
        self.run("scontrol", "update", f"JobId={job}", "StartTime=now")

    def trains(self, job):
        """Wait until the job has saved."""
        self.until((self.folder_of(job) / "checkpoints/last.ckpt").exists)

    def signal(self, job, name):
        """Send a signal to the steps of a job, if there are any: to all their processes, as at a time limit."""
        command = ["scancel", f"--signal={name}", job]
        with suppress(subprocess.TimeoutExpired):  # it tries again for minutes where the job has ended already
            subprocess.run(command, cwd=self.work, env=self.environment, capture_output=True, timeout=5)

    def preempt(self, node):
        """Take the node for a job of higher priority."""
        self.run("sbatch", "--partition=high", "--exclusive", f"--nodelist={node}", "--output=/dev/null", "--wrap=true")


@pytest.fixture
def slurm(tmp_path):
    """A cluster that has been started, and a folder to submit from."""
    missing = [
        name for name in ("munged", "slurmctld", "slurmd", "srun") if not shutil.which(name, path="/usr/sbin:/usr/bin")
    ]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: apt-get install slurm-wlm munge")
    if os.geteuid() != 0:
        pytest.skip("a test starts the daemons of Slurm, and only root may")
    (tmp_path / "train.py").symlink_to(ROOT / "train.py")
    (tmp_path / "slurm").symlink_to(ROOT / "slurm")
    folder = tmp_path / "cluster"
    folder.mkdir()
    cluster = Cluster(folder, tmp_path)
    try:
        yield cluster.start()
    finally:
        cluster.stop()
