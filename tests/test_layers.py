"""The table of layers, held against the code: a package imports only from those above it here."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from stored_study import store_study

import autotune

PACKAGE = Path(autotune.__file__).parent

LAYERS: tuple[str, ...] = (
    "errors",
    "names",
    "text_file",
    "knob_values",
    "yaml_file",
    "lifeline",
    "drafts",
    "uncollected",
    "machine",
    "question",
    "space",
    "foreign",
    "trials",
    "techniques",
    "script",
    "worker",
    "launch",
    "profile",
    "predictor",
    "learner",
    "samplers",
    "pruners",
    "cluster",
    "drivers",
    "sites",
    "study",
    "answer",
    "nothing_fits",
    "plan",
    "doctor",
    "cli",
)

ORDER = {name: place for place, name in enumerate(LAYERS)}


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


WINGS = ("arithmetic", "memory", "reserved", "step_time", "uncertainty", "table", "analytic")
"""The predictor's rooms, from below."""


@pytest.mark.parametrize("path", sorted((PACKAGE / "predictor").rglob("*.py")), ids=str)
def test_wing_of_the_predictor_imports_only_from_below(path: Path) -> None:
    wing = path.relative_to(PACKAGE / "predictor").with_suffix("").parts[0]
    if wing not in WINGS:
        return
    text = path.read_text(encoding="utf-8")
    others = set(re.findall(r"from autotune\.predictor\.(\w+)", text)) - {wing}
    assert {other for other in others if WINGS.index(other) > WINGS.index(wing)} == set()


def test_the_table_names_every_room_once() -> None:
    assert set(ORDER) == {_room(path) for path in FILES}


LONG_FILES = {
    "space/strategy.py": "it declares every knob, with all that is known of it",
    "trials/trial.py": "it is what crosses every border: a trial, its prediction and its outcome",
}
"""Files of 400 lines and more, and why they are. One that is shorter now must leave the table."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_is_short_or_has_a_reason(path: Path) -> None:
    is_long = len(path.read_text(encoding="utf-8").splitlines()) >= 400
    assert is_long is (str(path.relative_to(PACKAGE)) in LONG_FILES)


def test_every_long_file_with_a_reason_is_there() -> None:
    assert LONG_FILES.keys() <= {path.relative_to(PACKAGE).as_posix() for path in FILES}


def test_help_and_planning_load_no_gpu_library() -> None:
    code = (
        "import sys, autotune.cli, autotune.space.space_file, autotune.predictor;"
        "import autotune.answer.export;"
        "import autotune.plan.explanation, autotune.plan.export;"
        "heavy = {'torch', 'deepspeed', 'ray', 'optuna', 'transformers'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_a_report_reads_a_study_without_its_space(tmp_path: Path) -> None:
    """The models of the space's file take a quarter of a second, and torch takes two."""
    code = (
        "import sys; from autotune.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'deepspeed', 'ray', 'transformers', 'autotune.space.space_file'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    study = store_study(tmp_path / "study")
    command = [sys.executable, "-c", code, "report", str(study)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Pareto" in ran.stdout
    assert ran.stdout.splitlines()[-1] == "[]"


def test_a_search_on_one_machine_does_not_load_ray() -> None:
    code = (
        "import sys, autotune.cli.session, autotune.sites.this_machine;print('ray' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


def test_ray_is_imported_by_its_driver_alone() -> None:
    pattern = re.compile(r"^\s*(?:import|from) ray\b", re.MULTILINE)
    importing = [path for path in FILES if pattern.search(path.read_text(encoding="utf-8"))]
    assert {path.relative_to(PACKAGE).parent.as_posix() for path in importing} == {
        "drivers/ray_tune"
    }
