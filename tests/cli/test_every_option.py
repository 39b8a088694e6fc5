"""Every option of every command, with values it cannot have: one line that names it, exit 2."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import autotune_here
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stored_study import store_study
from typer.main import get_command

from autotune.cli import app

BASES: dict[str, list[str]] = {
    "search": ["--model", "tiny", "--budget", "1s"],
    "plan": ["--model", "tiny", "--hardware", "1xH100-80GB", "--quick"],
    "report": ["study"],
    "export": ["study"],
    "doctor": ["--measure"],
}
CHOICES = ("method", "sampler", "objective", "pick", "format_")
DURATIONS = ("budget", "trial_timeout")
FILES = ("calibrate_from", "from_file", "hardware", "model", "nvme_path", "out", "reuse", "space")

NO_NUMBER = st.sampled_from(
    ["٣", "\uff11\uff12", "nan", "1e", "", "0x10", "--5", "1__0", "9" * 5000, "\udcff"]
)
NO_INTEGER = NO_NUMBER | st.sampled_from(["inf", "1e300", "1.5"])
NO_TEXT = (
    st.sampled_from(
        ["", "  ", "a\nb", "a\tb", "\x1b[31m", "\x9b31m", "\udcff", "\u202eevil", "\u2028"]
    )
    | st.text(min_size=1).map(lambda text: text + "\x07")
    | st.integers(4097, 9000).map(lambda length: "x" * length)
)
NO_DURATION = st.sampled_from(
    [
        "1h1h",
        "٣s",
        "1e3s",
        "-5m",
        "30m1h",
        "1s1m",
        "0s",
        "0.0000001s",
        "inf",
        "9" * 400 + "h",
        "1h ",
    ]
) | st.text(min_size=1).filter(lambda text: text[-1] not in "smh")


def _options() -> Iterator[tuple[str, Any]]:
    commands: Any = get_command(app)
    for name, command in commands.commands.items():
        for option in command.params:
            is_plain = getattr(option, "is_flag", False) or option.name == "help"
            if option.param_type_name == "option" and not is_plain:
                yield name, option


OPTIONS = {f"{command} {option.opts[0]}": (command, option) for command, option in _options()}


def wrong_values(option: Any) -> st.SearchStrategy[str]:
    """Values that an option cannot have, by what it takes."""
    annotation = str(option.type_descriptor.annotation)
    if "int" in annotation or "float" in annotation:
        far = st.integers(10**10, 10**40) | st.integers(-(10**40), -1)
        least = option.type_descriptor.parameter_info.min
        below = st.just(str(least - 1)) if least is not None else st.just("-1")
        other = NO_INTEGER if "int" in annotation else NO_NUMBER | st.sampled_from(["inf", "-inf"])
        return other | far.map(str) | below
    if option.name in DURATIONS:
        return NO_TEXT | NO_DURATION
    if option.name in CHOICES:
        return NO_TEXT | st.text(min_size=1).filter(lambda text: not text.isalpha())
    if option.name in FILES:
        return NO_TEXT | st.integers(256, 4000).map(lambda length: "x" * length)
    if option.name == "storage":
        return NO_TEXT | st.sampled_from(
            ["sqlite:///no/such/folder/x.db", "nonsense", "x://", "a:b@c"]
        )
    if option.name == "lora_targets":
        return NO_TEXT | st.sampled_from(
            ["all-linear,q_proj", "q_proj,q_proj", ",", "q_proj,", "q", "all-linear,all-linear"]
        )
    return NO_TEXT


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """What lies in a folder, with sizes and times."""
    return {
        str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in folder.rglob("*")
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("options")
    store_study(folder / "study")
    return folder


@pytest.mark.parametrize("name", OPTIONS)
@settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_a_wrong_value_is_refused_in_one_line_by_the_options_name(
    name: str, folder: Path, data: st.DataObject
) -> None:
    command, option = OPTIONS[name]
    value = data.draw(wrong_values(option).filter(lambda text: "\x00" not in text))
    before = tree(folder)
    ran = autotune_here(command, *BASES[command], f"{option.opts[0]}={value}", folder=folder)
    assert ran.returncode == 2, (value, ran.stderr)
    assert ran.stdout == ""
    assert len(ran.stderr.splitlines()) == 1
    assert ran.stderr.isprintable() or ran.stderr.removesuffix("\n").isprintable()
    assert option.opts[0] in ran.stderr or "storage" in ran.stderr
    assert tree(folder) == before
