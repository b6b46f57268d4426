"""The command line starts light."""

import subprocess
import sys
from time import perf_counter

import pytest

HEAVY = ("transformers", "timm", "faiss", "wandb", "optuna")


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("args", [["--help"], ["fit", "--help"], ["list"], ["gallery", "--help"], ["sweep", "--help"]])
def test_help_and_list_import_nothing_heavy(args: list[str]) -> None:
    printed = python(
        "import sys\nfrom zoo.__main__ import main\n"
        f"try:\n    main({args!r})\nexcept SystemExit:\n    pass\n"
        f"print('HEAVY', [m for m in {HEAVY} if m in sys.modules])"
    )
    assert printed.rstrip().endswith("HEAVY []")
    assert ("crlnet" in printed) == (args == ["list"])


def test_transformers_still_works_where_torchmetrics_holds_a_stand_in() -> None:
    printed = python(
        "from zoo.startup import light_imports\n"
        "with light_imports():\n    import torchmetrics.functional.text.bert as b\n"
        "import transformers\nprint(b.AutoModel.from_pretrained == transformers.AutoModel.from_pretrained)"
    )
    assert printed.strip() == "True"


@pytest.mark.slow
def test_help_takes_less_than_1_3_times_an_import_of_lightning() -> None:
    def seconds(code: str) -> float:
        start = perf_counter()
        python(code)
        return perf_counter() - start

    helping = "from zoo.__main__ import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass"
    ratios = sorted(seconds(helping) / seconds("import lightning") for _ in range(3))
    assert ratios[1] < 1.3
