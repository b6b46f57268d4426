"""The wheel, installed into an empty environment away from the clone, lists, fits, tests and predicts."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo import catalogue

ROOT = Path(__file__).parent.parent
LOAD_ALL = """
import zoo
from zoo import catalogue
for entry in catalogue.checkpoints():
    if "bundled" in entry.source:
        assert not zoo.load(entry.name).training
        print(entry.name)
"""


def call(*command: str | Path, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.network
def test_the_wheel_works_away_from_the_clone(tmp_path: Path) -> None:
    call(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT, cwd=tmp_path)
    wheel = next(tmp_path.glob("*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    for path in (ROOT / "configs").rglob("*.yaml"):
        assert f"zoo/_configs/{path.relative_to(ROOT / 'configs').as_posix()}" in names
    call(sys.executable, "-m", "venv", tmp_path / "env", cwd=tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    call(python, "-m", "pip", "install", "-q", "uv", cwd=tmp_path)
    call(python, "-m", "uv", "pip", "install", "-q", "--python", python, wheel, cwd=tmp_path)
    assert "few_shot/crlnet_omniglot" in call(python, "-m", "zoo", "list", cwd=tmp_path)
    smoke = (
        "--config",
        "few_shot/crlnet_omniglot",
        "--config",
        "overlays/smoke",
        "--data.init_args.pool_batch_size=2000",
    )
    assert "Test results" in call(python, "-m", "zoo", "fit", *smoke, cwd=tmp_path)
    loaded = call(python, "-c", LOAD_ALL, cwd=tmp_path).split()
    assert set(loaded) == {entry.name for entry in catalogue.checkpoints() if "bundled" in entry.source}
    call(python, "-m", "uv", "pip", "install", "-q", "--python", python, "pytest", cwd=tmp_path)
    shutil.copy(ROOT / "tests" / "test_shipped.py", tmp_path)
    call(python, "-m", "pytest", "-q", "test_shipped.py", "-k", "measures_what_it_states", cwd=tmp_path)
    for config in ("recommenders/sasrec_retail", "llm_rl/grpo_arithmetic"):
        words = ("--config", config, "--ckpt_path", f"zoo://{config}", "--trainer.limit_predict_batches=1")
        call(python, "-m", "zoo", "predict", *words, cwd=tmp_path)
        table = next(tmp_path.glob(f"runs/{config.split('/')[1]}/*/predictions.csv"))
        assert len(table.read_text(encoding="utf-8").splitlines()) > 100
    generator = np.random.default_rng(0)
    for name in ("support/a/0.png", "support/b/0.png", "query/0.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (40, 40), dtype=np.uint8)).save(tmp_path / name)
    data = ("--data.init_args.predict_support=support", "--data.init_args.predict_query=query")
    call(
        python,
        "-m",
        "zoo",
        "predict",
        "--config",
        "few_shot/crlnet_omniglot",
        "--ckpt_path",
        "best",
        *data,
        cwd=tmp_path,
    )
    assert len(list(tmp_path.glob("runs/crlnet_omniglot/*/predictions.csv"))) == 1
