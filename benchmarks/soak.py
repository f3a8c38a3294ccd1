"""Faults tried on small sweeps: which were survived, with the table and the MLflow runs of a sweep in peace.

python benchmarks/soak.py --rounds 1         # about 8 minutes

Half of the faults strike a sweep at a random moment, the others its store at rest; the same command then goes on.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import record
import tyro
from rich.progress import track

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.commands import start
from tests.faults.sweeps import ARGS, children, finish, kill, processes, progress, table, wait_for

COMMAND = "layer_noise", "--backbone", "ddpm-fashion-mnist", *ARGS


@dataclass(frozen=True)
class Soak:
    rounds: int = 5
    seed: int = 0


def interrupt(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)


def kill_worker(name: str) -> Callable[[subprocess.Popen], None]:
    def strike(process: subprocess.Popen) -> None:
        if wait_for(lambda: bool(processes(name, process.pid)), process):
            os.kill(processes(name, process.pid)[0], signal.SIGKILL)

    return strike


RUNNING: dict[str, Callable[[subprocess.Popen], None]] = {
    "driver killed": kill,
    "driver interrupted": interrupt,
    "pool's worker killed": kill_worker("ray::Worker"),
    "trial's worker killed": kill_worker("ray::TaskTrial"),
}


def flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def cut(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size))


def delete(path: Path, rng: random.Random) -> None:
    path.unlink()


AT_REST: dict[str, tuple[str, Callable[[Path, random.Random], None]]] = {
    "bits of three shards flipped": ("*.arrow", flip),
    "three shards cut short": ("*.arrow", cut),
    "bits of three results flipped": ("ledger/*/*.json", flip),
    "three results deleted": ("ledger/*/*.json", delete),
}


def strike_running(name: str, folder: Path, whole: int, rng: random.Random) -> None:
    process = start(*COMMAND, cwd=folder)
    moment = rng.randrange(whole)
    if wait_for(lambda: progress(folder) >= moment, process):
        RUNNING[name](process)
    if process.poll() is None:
        finish(process)
    elif process.returncode:
        finish(start(*COMMAND, cwd=folder))


def strike_at_rest(name: str, folder: Path, rng: random.Random) -> None:
    pattern, damage = AT_REST[name]
    for results in folder.glob("out/*/results.json"):
        results.unlink()
    for path in rng.sample(sorted((folder / "out" / "store").rglob(pattern)), 3):
        damage(path, rng)
    finish(start(*COMMAND, cwd=folder))


def main(config: Soak) -> None:
    rng = random.Random(config.seed)
    outcomes: dict[str, dict[str, int]] = {name: {"tried": 0, "survived": 0} for name in [*RUNNING, *AT_REST]}
    with tempfile.TemporaryDirectory() as root:
        peace = Path(root) / "peace"
        peace.mkdir()
        finish(start(*COMMAND, cwd=peace))
        expected, whole = (table(peace), children(peace)), progress(peace)
        for name in track([*outcomes] * config.rounds):
            folder = Path(tempfile.mkdtemp(dir=root))
            outcomes[name]["tried"] += 1
            try:
                if name in RUNNING:
                    strike_running(name, folder, whole, rng)
                else:
                    shutil.copytree(peace, folder, dirs_exist_ok=True)
                    strike_at_rest(name, folder, rng)
                outcomes[name]["survived"] += (table(folder), children(folder)) == expected
            except (AssertionError, ValueError, subprocess.TimeoutExpired) as error:
                print(f"{name}: {error}")
            shutil.rmtree(folder)
    print(f"{'fault':<32}{'tried':>6}{'survived':>10}{'lost':>6}")
    for name, one in outcomes.items():
        print(f"{name:<32}{one['tried']:6}{one['survived']:10}{one['tried'] - one['survived']:6}")
    record.write("soak", outcomes)


if __name__ == "__main__":
    main(tyro.cli(Soak, description=__doc__))
