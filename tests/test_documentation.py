"""The pages that people read, held against the code: commands, links, paths, the file tree."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from command_line import autotune_here, autotune_process
from documents import (
    PAGES,
    ROOT,
    inline_commands,
    printed_commands,
    yaml_block,
)
from ruamel.yaml import YAML
from stored_study import store_study

import autotune
from autotune.cli import app
from autotune.cli.command import Command
from autotune.question.presets import PRESETS
from autotune.space.strategy import FACTS, Strategy
from autotune.trials.trial import FailureKind

_STUDY = "results/tiny-full-512-2xcpu"
"""What the pages call the study of their first search."""

_FIRST_SEARCH = "autotune search --model tiny --budget 2m"

_IN_CI = "CI runs the same line"
_GPU = "needs a GPU, or a budget of minutes"
_CLUSTER = "starts Ray on a fixed port; tests/drivers/test_ray_tune.py starts clusters of its own"
_INSTALLS = "installs packages"
_OWN = "needs a training script; tests/cli/test_own_command.py runs such commands"

NOT_RUN: dict[str, str] = {
    "pip install -e .": _INSTALLS,
    "pip install -e '.[test]'": _IN_CI,
    ".venv/bin/pip install -e '.[test]'": _INSTALLS,
    "pip install 'psycopg[binary]'": _INSTALLS,
    "python3 -m venv .venv": _IN_CI,
    "ruff check .": _IN_CI,
    "ruff format --check .": _IN_CI,
    "mypy": _IN_CI,
    "pytest -n 2 --dist loadfile": _IN_CI,
    'pytest -n 2 --dist loadfile -m "not slow and not gpu and not ray"': "runs this suite",
    "pytest -m ray": "runs this suite",
    "pytest -m gpu": "runs this suite",
    "pytest tests/space/test_listing.py": "runs this suite",
    "autotune search --model 1.1B --seq-len 1024 --global-batch 128 --budget 8m": _GPU,
    "autotune search --model 13B --method lora --budget 10m": _GPU,
    "autotune search --model ./my-model --space memory --budget 30m": _GPU,
    "autotune search --model 7B --ray auto --gpus-per-trial 8 --budget 4h": _GPU,
    "autotune search --from axolotl.yaml --budget 20m": _GPU,
    "autotune search --budget 20m -- torchrun --nproc-per-node 8 train.py "
    "--deepspeed ds.json": _OWN,
    "autotune search -- train.py --batch-size {micro_batch_size=4} "
    "--accumulation {gradient_accumulation_steps=8}": _OWN,
    "autotune run results/train-8xH100/exports/trial-7": _OWN,
    "autotune search --model 7B --ray auto "
    "--storage postgresql+psycopg://USER@HOST/DATABASE": _GPU,
    "autotune search --model tiny --seq-len 512 --ray auto --gpus-per-trial 4 --trials 4 "
    "--budget 2m": _CLUSTER,
    "autotune doctor --build --measure": "compiles CPU Adam, for a minute; measures for another",
    "ray get-auth-token --generate > /dev/null": "writes into the home folder",
    "ray start --labels device-kind=old-cpu": _CLUSTER,
    "ray start --head --port=6379 --num-cpus=2 --include-dashboard=false "
    "--disable-usage-stats": _CLUSTER,
    "ray start --address=127.0.0.1:6379 --num-cpus=2 --disable-usage-stats": _CLUSTER,
    "ray stop": "ends every Ray process of the machine",
    "ray up cluster.yaml": "needs machines of a cluster",
}
"""What is not run as it is printed, each with the reason; it is parsed all the same."""

_SLOW = ("autotune plan --model 7B --method lora --hardware 1xRTX4090 --explain",)
"""It traces the model's code, 11 s of it."""

_PARTS = tuple(dict.fromkeys(part for each in printed_commands() for part in each.parts))
_RUN = tuple(part for part in _PARTS if part not in NOT_RUN and part != _FIRST_SEARCH)


def _arguments(command: str) -> list[str]:
    """The words of a command, without the redirection at its end."""
    return shlex.split(command.partition(" > ")[0])


def test_what_is_not_run_is_still_printed() -> None:
    assert set(NOT_RUN) <= set(_PARTS)
    assert _FIRST_SEARCH in _PARTS


@pytest.mark.parametrize(
    "command",
    [pytest.param(each, marks=[pytest.mark.slow] if each in _SLOW else []) for each in _RUN],
)
def test_a_printed_command_runs(command: str, tmp_path: Path) -> None:
    program, *arguments = _arguments(command)
    if program != "autotune":
        _run_in_a_copy(program, arguments, tmp_path)
        return
    if _STUDY in arguments:
        store_study(tmp_path / _STUDY)
    (tmp_path / "my-host.yaml").write_text(yaml_block("docs/planning.md", "device:"))
    (tmp_path / "axolotl.yaml").write_text(yaml_block("docs/from-a-file.md", "base_model:"))
    ran = autotune_here(*arguments, folder=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout


def _run_in_a_copy(program: str, arguments: list[str], folder: Path) -> None:
    """Run a script of the project where it may write: on its own copy of docs/."""
    assert program == "python", f"{program}: run it here, or give a reason in NOT_RUN"
    shutil.copytree(ROOT / "docs", folder / "docs")
    for name in ("autotune", "tests", "search_spaces"):
        (folder / name).symlink_to(ROOT / name)
    ran = subprocess.run([sys.executable, *arguments], cwd=folder, check=False, timeout=60)
    assert ran.returncode == 0


@pytest.mark.slow
def test_the_first_search_runs_until_ctrl_c_and_its_study_is_where_the_pages_say(
    tmp_path: Path,
) -> None:
    process = autotune_process(*_arguments(_FIRST_SEARCH)[1:], folder=tmp_path)
    assert process.stderr is not None
    # It would go on for two minutes; whoever has seen enough ends it, and has an answer.
    for line in process.stderr:
        if "trial 1:" in line:
            process.send_signal(signal.SIGINT)
            break
    answer, rest = process.communicate(timeout=120)
    assert process.returncode == 0, rest
    assert "Pareto front" in answer
    assert autotune_here("report", _STUDY, folder=tmp_path).returncode == 0
    assert autotune_here("export", _STUDY, "--pick", "balanced", folder=tmp_path).returncode == 0


@pytest.mark.parametrize("command", [*NOT_RUN, *(each.text for each in inline_commands())])
def test_a_command_that_is_not_run_is_one_that_its_program_takes(
    command: str, pytestconfig: pytest.Config
) -> None:
    program, *arguments = _arguments(command)
    if NOT_RUN.get(command) is _IN_CI:
        assert command in (ROOT / ".ci" / "run").read_text()
    elif program == "autotune":
        _parse_ours(arguments)
    elif program == "ray":
        _parse_ray(arguments)
    elif program == "pytest":
        _parse_pytest(arguments, pytestconfig)
    else:
        assert Path(program).name == "pip"
        _check_requirement(arguments[-1])


def _parse_ours(arguments: list[str]) -> None:
    """Have the real command line read the options, which runs nothing."""
    if "…" in arguments:
        place = arguments.index("…")
        arguments = [*arguments[:place], "--model", "tiny", *arguments[place + 1 :]]
    name, *rest = arguments
    commands: dict[str, Command] = vars(typer.main.get_command(app))["commands"]
    is_whole = bool(rest) or name == "doctor"
    if is_whole and rest != ["--help"]:
        commands[name].make_context(name, rest)
    assert name in commands


def _parse_ray(arguments: list[str]) -> None:
    from ray.scripts.scripts import cli

    name, *rest = arguments
    commands: Any = cli.commands
    commands[name].make_context(name, rest)


def _parse_pytest(arguments: list[str], config: pytest.Config) -> None:
    known = {line.partition(":")[0] for line in config.getini("markers")}
    if "-m" in arguments:
        expression = arguments[arguments.index("-m") + 1]
        assert set(re.findall(r"\w+", expression)) - {"not", "and"} <= known
    for path in (each for each in arguments if each.startswith("tests/")):
        assert (ROOT / path).exists()


def _check_requirement(requirement: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    own = re.fullmatch(r"\.(?:\[(\w+)\])?", requirement)
    if own:
        assert own[1] is None or own[1] in extras
    else:
        assert any(each.startswith(requirement) for each in extras["test"])


def test_ray_takes_the_printed_cluster_file() -> None:
    private = pytest.importorskip("ray.autoscaler._private.util")
    file = YAML(typ="safe").load(yaml_block("docs/cluster.md", "cluster_name:"))
    private.validate_config(private.prepare_config(file))


def test_the_file_tree_is_that_of_the_docstrings() -> None:
    ran = subprocess.run(
        [sys.executable, ROOT / "docs" / "make_architecture.py", "--check"], check=False
    )
    assert ran.returncode == 0, "docs/architecture.md is stale: python docs/make_architecture.py"


def test_the_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    assert len(text.split()) <= 1500


def test_the_map_has_every_package() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    packages = [path.parent.name for path in (ROOT / "autotune").glob("*/__init__.py")]
    assert [name for name in packages if f"| `{name}` |" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        if name.startswith("https://"):
            continue
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), target
        if anchor:
            assert anchor in _anchors(linked), target


def _anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_of_the_project_exist(page: Path) -> None:
    folders = r"`((?:autotune|tests|results|search_spaces|docs)/[\w./*-]*)`"
    for path in re.findall(folders, page.read_text(encoding="utf-8")):
        if path.startswith(_STUDY):
            continue
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_are_short_outside_of_tables_and_the_tree(page: Path) -> None:
    for line in page.read_text(encoding="utf-8").splitlines():
        assert len(line) <= 120 or line.startswith(("|", "- `")), line


def test_functions_that_the_pages_name_are_exported() -> None:
    for page in PAGES:
        for name in re.findall(r"autotune\.(\w+)\(", page.read_text(encoding="utf-8")):
            assert name in autotune.__all__


def test_messages_of_the_troubleshooting_page_are_those_of_the_code() -> None:
    said = _texts_of_the_package()
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    rows = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| `")]
    for message in (each for row in rows for each in re.findall(r"`([^`]+)`", row)):
        for part in re.split(_FILLED_IN, message):
            assert part.strip(" ,:;.") in said, f"no message says {part!r} of {message!r}"


_FILLED_IN = r"…|\b[A-Z]+\b"
"""What stands in the page for a value that the code fills in."""


def _texts_of_the_package() -> str:
    """All text of the code's own; where a value is filled in, the text breaks off."""
    found = []
    for file in (ROOT / "autotune").rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                constants = (each.value for each in node.values if isinstance(each, ast.Constant))
                found.append("\n".join(map(str, constants)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_every_kind_of_failure_is_explained() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    assert all(f"| `{kind}` |" in page for kind in FailureKind)


def test_every_preset_and_space_is_named() -> None:
    page = (ROOT / "docs" / "searching.md").read_text(encoding="utf-8")
    spaces = [path.stem for path in (ROOT / "search_spaces").glob("*.yaml")]
    assert all(f"| `{name}` |" in page for name in (*PRESETS, *spaces))


def test_the_glossary_has_the_words_of_every_knob() -> None:
    page = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    table = page.partition("## A strategy in short words")[2].partition("\n## ")[0]
    # Values of their own (an optimizer, a precision, an attention) speak for themselves.
    words = {facts.word for facts in FACTS.values() if isinstance(facts.word, str)}
    shown = {word.partition("{")[0] for word in words} - {""}
    # Of the groups of modules one stands for all; quantized gradients are said like weights.
    shown -= {"embedding=", "attention=", "norm=", "head=", "q-gradients"}
    assert not {word for word in shown if word not in table}
    for text, knobs in _EXAMPLES_IN_SHORT:
        assert str(Strategy.from_dict(knobs)) == text
        assert f"| `{text}` |" in table


_EXAMPLES_IN_SHORT: tuple[tuple[str, dict[str, Any]], ...] = (
    ("Z2 mb8", {"zero_stage": 2, "micro_batch_size": 8}),
    ("Z0 mb1 ckpt2", {"checkpoint_interval": 2}),
    ("Z0 mb1 ckpt-mlp", {"checkpoint_interval": 1, "checkpoint_scope": "mlp"}),
    (
        "Z3 optim50%@cpu mb1",
        {"zero_stage": 3, "offload_optimizer": "cpu", "offload_ratio": 0.5},
    ),
    (
        "Z1 mb1 bucket50M no-overlap",
        {
            "zero_stage": 1,
            "reduce_bucket_size": 50_000_000,
            "overlap_comm": False,
        },
    ),
)
