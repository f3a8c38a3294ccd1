"""A small sweep as a user gives it, its table, and what MLflow has of it."""

import csv
import os
import signal
import sqlite3
import subprocess
from collections import Counter
from contextlib import suppress
from pathlib import Path

from tests.commands import PATIENCE_SECONDS, Fork

Process = subprocess.Popen | Fork
ARGS = ["--dataset", "digits", "--timesteps", "0", "100", "600", "--poolings", "1", "2", "--num-trials", "6"]
SMALL = ["--dataset", "digits", "--timesteps", "100", "--poolings", "1", "2", "--search", "grid"]
SMALL += ["--blocks", "mid", "up.0.0", "--heads", "ridge"]
CELL = "block", "timestep", "pooling", "head", "num_images", "val_accuracy"


def listens_at(process: Process) -> set[str]:
    """The addresses, as in /proc/net, at which a command and its descendants listen."""
    sockets = set()
    for pid in processes("", process.pid):
        with suppress(OSError):
            sockets |= {os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir()}
    rows = [row.split() for table in ("tcp", "tcp6") for row in Path(f"/proc/net/{table}").read_text().splitlines()]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets}


def finish(process: Process) -> str:
    """Its report."""
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, err
    return out


def kill(process: Process) -> None:
    """SIGKILL of the driver alone; its Ray, which ends by itself when it notices, is ended sooner."""
    process.kill()
    process.communicate()
    subprocess.run(["pkill", "-KILL", "-s", str(process.pid)], check=False)


def table(cwd: Path) -> list[tuple[str, ...]]:
    """All trials of the one sweep there."""
    [path] = cwd.glob("out/layer-noise-*/trials.csv")
    with path.open() as file:
        return sorted(tuple(row[column] for column in CELL) for row in csv.DictReader(file))


def progress(cwd: Path) -> int:
    """Grows with all that a sweep keeps: shards, results, runs in MLflow, figures."""
    files = sum(len(files) for _, _, files in os.walk(cwd / "out"))
    try:
        with sqlite3.connect(f"file:{cwd}/mlflow.db?mode=ro", uri=True) as database:
            [(runs,)] = database.execute("select count(*) from runs")
    except sqlite3.Error:
        runs = 0
    return files + runs


def children(cwd: Path) -> list[tuple[str, ...]]:
    """What MLflow has of every trial, after checks that nothing is doubled or left open."""
    with sqlite3.connect(cwd / "mlflow.db") as database:
        runs = database.execute(
            "select run_uuid, name, status from runs where lifecycle_stage = 'active' and name not like 'layer-noise%'"
        ).fetchall()
        parents = database.execute("select status from runs where name like 'layer-noise%'").fetchall()
        metrics = database.execute("select run_uuid, value from latest_metrics where key = 'val_accuracy'").fetchall()
    assert parents == [("FINISHED",)]
    assert {status for _, _, status in runs} <= {"FINISHED", "KILLED"}
    assert max(Counter(name for _, name, _ in runs).values()) == 1
    accuracy = dict(metrics)
    return sorted((name, status, round(accuracy[run], 6)) for run, name, status in runs)


def processes(title: str, ancestor: int) -> list[int]:
    """Descendants of a process whose title begins so."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in listed.splitlines()]
    parent = {int(pid): int(ppid) for pid, ppid, _ in rows}

    def descends(pid: int) -> bool:
        return pid == ancestor or (pid in parent and descends(parent[pid]))

    return [int(pid) for pid, _, args in rows if args.startswith(title) and descends(int(pid))]


def kill_one(title: str) -> bool:
    """SIGKILL of one of this process' descendants, where there is one."""
    found = processes(title, os.getpid())
    for pid in found[:1]:
        os.kill(pid, signal.SIGKILL)
    return bool(found)
