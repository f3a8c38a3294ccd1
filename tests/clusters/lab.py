"""Machines that are namespaces of this one: each with its own processes, network, host name, /tmp and home."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

NEEDED = "unshare", "nsenter", "setpriv", "lsns", "ps", "pgrep", "ip", "ss", "rsync", "ssh", "ssh-keygen", "sshd"
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
HOME = "/media/home"
NETWORK = "10.77.0"
UNSHARE = "unshare", "--net", "--pid", "--fork", "--mount", "--uts", "--mount-proc"

# What the machines share is what $SHARED names; the rest of /tmp, the home and what services write are their own.
BOOT = f"""
set -eu
mount -t tmpfs tmpfs /media
mkdir -p {HOME} /media/tmp
for folder in $SHARED; do mkdir -p "/media$folder" && mount --bind "$folder" "/media$folder"; done
mount --rbind /media/tmp /tmp
mount -t tmpfs tmpfs /run
awk -F: -v OFS=: '$1 == "root" {{$6 = "{HOME}"; $7 = "/bin/bash"}} 1' /etc/passwd > /media/passwd
printf '%s\\n' '127.0.0.1 localhost' "{NETWORK}.$NUMBER $NAME" > /media/hosts
mount --bind /media/passwd /etc/passwd
mount --bind /media/hosts /etc/hosts
hostname "$NAME"
ip link set lo up
until ip addr add {NETWORK}.$NUMBER/24 dev eth0 2> /media/no-link; do sleep 0.05; done
ip link set eth0 up
"""
# The first process takes in orphans, and the machine ends with it.
STAY = """
trap exit TERM
wait
"""
SWITCH = "ip link add eth0 type bridge\n" + BOOT + "sleep infinity &" + STAY
HOST = (
    BOOT
    + """
mkdir /run/sshd
"$(command -v sshd)" -D -f /dev/null -h "$KEY" -o AuthorizedKeysFile="$KEY.pub" -o PermitRootLogin=yes \
    -o StrictModes=no -o PidFile=none -o UsePAM=no -o SetEnv="$SET_ENV" &"""
    + STAY
)


def why_not() -> str:
    """What this machine lacks for a lab, in words; empty where it lacks nothing."""
    missing = [tool for tool in NEEDED if not shutil.which(tool, path=PATH)]
    if missing:
        return f"{', '.join(missing)} not found: apt-get install openssh-server iproute2 rsync"
    tried = subprocess.run(
        [*UNSHARE, "sh", "-c",
         "mount -t tmpfs tmpfs /media && ip link add one type veth peer name two && ip link add lan type bridge"],
        capture_output=True, text=True, env=os.environ | {"PATH": PATH}, check=False,
    )  # fmt: skip
    return f"this machine allows no namespaces: {tried.stderr.strip()}" if tried.returncode else ""


class Machine:
    """Lives until it is switched off, or the process that made it ends; the kernel clears all of it away."""

    def __init__(self, name: str, number: int, shared: Iterable[Path], script: str, **env: str):
        self.name, self.address = name, f"{NETWORK}.{number}"
        self.env = {"PATH": PATH, "HOME": HOME, "USER": "root", "LANG": "C.UTF-8", "TERM": "dumb"}
        boot = {"NAME": name, "NUMBER": str(number), "SHARED": " ".join(map(str, shared))}
        self.unshare = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *UNSHARE, "--kill-child", "sh", "-c", script],
            env=self.env | boot | env, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        children = Path(f"/proc/{self.unshare.pid}/task/{self.unshare.pid}/children")
        while not (init := children.read_text().split()):
            time.sleep(0.01)
        [self.pid] = init
        self.namespaces = {os.stat(f"/proc/{self.pid}/ns/{kind}").st_ino for kind in ("mnt", "net", "uts")}

    def plug(self, lan: "Machine") -> None:
        """A cable from here to the machine whose eth0 is a bridge."""
        lan.inside("ip", "link", "add", self.name, "type", "veth", "peer", "name", "eth0", "netns", self.pid)
        lan.inside("ip", "link", "set", self.name, "master", "eth0", "up")

    def inside(self, *command: str) -> None:
        """Run a command of this machine's network, seeing the processes of the real one."""
        subprocess.run(["nsenter", "--net", "--target", self.pid, *command], env=self.env, check=True)

    def start(self, *command: str, **env: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["nsenter", "--net", "--pid", "--mount", "--uts", "--target", self.pid, "env", "-C", HOME, *command],
            env=self.env | env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def run(self, *command: str, seconds: float = 240, **env: str) -> str:
        process = self.start(*command, **env)
        printed, _ = process.communicate(timeout=seconds)
        assert process.returncode == 0, f"{' '.join(command)}: {printed}"
        return printed

    def processes(self, *titles: str) -> list[str]:
        """Command lines that begin so."""
        return [line for line in self.run("ps", "-eo", "args=").splitlines() if line.startswith(titles)]

    def off(self) -> None:
        os.kill(int(self.pid), signal.SIGTERM)
        self.unshare.wait()
        there = subprocess.run(["lsns", "--noheadings", "--output", "NS"], capture_output=True, text=True, check=False)
        assert not self.namespaces & set(map(int, there.stdout.split()))
