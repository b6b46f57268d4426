"""Stands for a training: logs a loss that is best at x = 0.3, in a run folder as the zoo's, and resumes from its place.

Started as ``stub.py [fail=X [broken=FILE]] [nap=SECONDS] [steps=N] --x=0.1 ... --run_dir D --run_name N
[--ckpt_path last]``; with ``broken`` it fails as long as there is such a file.
"""

import os
import signal
import sys
import time
from pathlib import Path


def main() -> None:
    words = sys.argv[1:]
    setup = {"nap": "0", "steps": "4", "fail": "", "metric": "val/loss", "broken": ""}
    setup |= dict(word.split("=", 1) for word in words if not word.startswith("--") and "=" in word)
    options: dict[str, str] = {}
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            options[name] = value if equals else following
    folder = Path(options["run_dir"]) / options["run_name"] / "version_0"
    x = float(options["x"])
    stopped: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: stopped.append(number))
    folder.mkdir(parents=True, exist_ok=True)
    place, metrics = folder / "place.txt", folder / "metrics.csv"
    done = int(place.read_text()) if options.get("ckpt_path") == "last" and place.is_file() else 0
    log(folder, f"start {done} {os.environ.get('OMP_NUM_THREADS')} {os.environ.get('CUDA_VISIBLE_DEVICES')}")
    (folder / "config.yaml").write_text(f"x: {x}\nrun_dir: {options['run_dir']}\nrun_name: {options['run_name']}\n")
    broken = not setup["broken"] or Path(setup["broken"]).exists()
    if broken and setup["fail"] in ("all", options["x"]):
        print("first line\nthe data are\nnot there", file=sys.stderr)
        sys.exit(3)
    if not metrics.is_file():
        metrics.write_text(f"step,{setup['metric']},train/loss\n")
    for step in range(done, int(setup["steps"])):
        time.sleep(float(setup["nap"]))
        with metrics.open("a") as stream:
            stream.write(f"{step},,{1 / (step + 1)}\n{step},{(x - 0.3) ** 2 + 1 / (step + 1)},\n")
        place.write_text(str(step + 1))
        if stopped:
            log(folder, f"stop {step + 1}")
            sys.exit(1)
    log(folder, "end")


def log(folder: Path, what: str) -> None:
    with (folder / "log.txt").open("a") as stream:
        stream.write(f"{what} {time.time()}\n")


if __name__ == "__main__":
    main()
