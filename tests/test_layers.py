"""The table of layers, held against the code: a module imports only from lower layers.

Modules of one layer may import each other only in the order in which they stand here.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import autotune

PACKAGE = Path(autotune.__file__).parent

LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "interval", "presets", "knobs", "rates"),
    (
        "yaml_file",
        "extensions",
        "adapter_targets",
        "census",
        "model_shape",
        "workload",
        "hardware",
        "rates_file",
        "hardware_spec",
        "software",
        "stages",
        "contradictions",
        "strategy",
        "strategy_table",
        "memory_order",
    ),
    (
        "composition",
        "measurement",
        "trial_spec",
        "trial",
        "goal",
        "breakdown",
        "prediction_table",
        "question",
        "compatibility",
        "deepspeed_config",
        "strategy_file",
        "listing",
        "search_space",
    ),
    ("protocols", "space_file", "budget"),
    (
        "techniques",
        "worker",
        "profile",
        "predictor",
        "server_process",
        "rank_process",
        "launcher",
        "replay",
        "measure",
    ),
    ("samplers", "pruners", "record", "study_folder", "drivers"),
    (
        "pareto",
        "confirmation",
        "study",
        "prediction_error",
        "study_summary",
        "reuse",
        "report",
        "shortfall",
        "export_guide",
        "export",
    ),
    ("plan_calibration", "plan", "plan_report", "plan_explanation", "plan_export"),
    ("stored_study", "progress", "doctor"),
    ("cli",),
)

ORDER = {name: place for place, name in enumerate(n for layer in LAYERS for n in layer)}


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def _imports(path: Path) -> set[str]:
    """Rooms of the package that a file imports, inside functions too; for types alone, none."""
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("autotune."):
            found.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("autotune.")}
    return found


FILES = sorted(p for p in PACKAGE.rglob("*.py") if _room(p) not in ("__init__", "__main__"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_imports_only_from_below(path: Path) -> None:
    room = _room(path)
    above = {other for other in _imports(path) - {room} if ORDER[other] > ORDER[room]}
    assert above == set()


def test_the_table_names_every_room_once() -> None:
    assert set(ORDER) == {_room(path) for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_stays_readable(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 400


def test_help_and_planning_load_no_gpu_library() -> None:
    code = (
        "import sys, autotune.cli, autotune.space_file, autotune.predictor, autotune.export;"
        "import autotune.plan_explanation, autotune.plan_export;"
        "heavy = {'torch', 'deepspeed', 'ray', 'optuna', 'transformers'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_a_search_on_one_machine_does_not_load_ray() -> None:
    code = "import sys, autotune.cli.session, autotune.cli.cluster; print('ray' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
