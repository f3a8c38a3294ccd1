"""How much of this machine a sweep keeps at work, from the command to its end, with nothing stored before.

    python benchmarks/busy.py            # the whole of Fashion-MNIST; five minutes on 2 cores

Share of the time of all cores in which they were not idle, whoever used them: leave the machine alone meanwhile.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import record
import tyro

SWEEP = Path(__file__).parents[1] / "sweeps" / "layer_noise.py"


def main(dataset: str = "fashion-mnist") -> None:
    with TemporaryDirectory() as folder:
        command = [sys.executable, SWEEP, "--dataset", dataset, "--out", folder, "--store", f"{folder}/store"]
        env = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
        before, started = psutil.cpu_times(), time.perf_counter()
        if code := subprocess.run([*command, "--no-atlas"], env=env).returncode:
            sys.exit(code)
        seconds, spent = time.perf_counter() - started, psutil.cpu_times()
    busy = 1 - (spent.idle + spent.iowait - before.idle - before.iowait) / (sum(spent) - sum(before))
    print(f"{busy:.2f} of the time of {psutil.cpu_count()} cores, over {seconds:.0f} s")
    record.write("busy", {"share_of_cores": busy, "seconds": seconds})


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
