"""How much of a machine a command keeps at work, from its start to its end.

    python benchmarks/busy.py python sweeps/layer_noise.py --dataset fashion-mnist --store out/busy --out out/busy

Share of the time of all cores in which they were not idle, whoever used them: leave the machine alone meanwhile.
"""

import subprocess
import sys
import time

import psutil
import record


def main(command: list[str]) -> None:
    before, started = psutil.cpu_times(), time.perf_counter()
    subprocess.run(command, check=True)
    seconds, spent = time.perf_counter() - started, psutil.cpu_times()
    busy = 1 - (spent.idle + spent.iowait - before.idle - before.iowait) / (sum(spent) - sum(before))
    print(f"{busy:.2f} of the time of {psutil.cpu_count()} cores, over {seconds:.0f} s")
    record.write("busy", {"share_of_cores": busy, "seconds": seconds})


if __name__ == "__main__":
    if not sys.argv[1:] or sys.argv[1] in ("-h", "--help"):
        sys.exit(__doc__)
    main(sys.argv[1:])
