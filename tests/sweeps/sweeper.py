"""A local sweep in a process of its own, light to import: ``sweeper.py FILE FOLDER TOTAL WORKERS``."""

import sys
from pathlib import Path

from zoo.sweeps.engine import LocalSweep
from zoo.sweeps.sweep_file import read_sweep
from zoo.sweeps.table import SweepDisplay

if __name__ == "__main__":
    file = read_sweep(sys.argv[1])
    with SweepDisplay(list(file.searched)) as display:
        over = LocalSweep(file, Path(sys.argv[2]), *map(int, sys.argv[3:]), display, poll=0.05, seed=0).run()
    sys.exit(0 if over else 130)
