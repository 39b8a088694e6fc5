"""`autotune plan` as a user runs it."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
from command_line import autotune, autotune_here
from tiers import slow_but

from autotune.question.presets import PRESETS

RESULTS = Path(__file__).parents[2] / "results"

LORA = ("plan", "--quick", "--model", "7B", "--method", "lora", "--hardware", "1xRTX4090")


def test_a_plan_is_printed_on_stdout_alone(tmp_path: Path) -> None:
    ran = autotune(*LORA, folder=tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "Predicted Pareto front" in ran.stdout
    assert "pick: throughput" in ran.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_allocator_is_simulated_for_what_is_shown(tmp_path: Path) -> None:
    question = ("plan", "--model", "125M", "--hardware", "1xH100-80GB", "--json")
    quick, closer = (
        json.loads(autotune(*question, *more, folder=tmp_path).stdout)
        for more in (("--quick",), ())
    )

    for shown in closer["front"]:
        prediction = shown["prediction"]
        peak = prediction["peak_memory_bytes"]
        assert prediction["peak_allocated_bytes"] <= peak
        assert prediction["peak_memory_upper_bytes"] < 1.2 * peak
    assert quick["num_strategies"] == closer["num_strategies"]


def test_explain_shows_the_parts_of_one_pick(tmp_path: Path) -> None:
    ran = autotune(*LORA, "--explain", "--pick", "memory", folder=tmp_path)
    assert ran.returncode == 0
    assert "Pick memory: " in ran.stdout
    assert "of device memory" in ran.stdout


def test_json_is_one_document(tmp_path: Path) -> None:
    ran = autotune(*LORA, "--explain", "--json", folder=tmp_path)
    document = json.loads(ran.stdout)
    assert document["measured"] is False
    assert document["explanation"]["pick"] == "throughput"


def test_70b_over_64_gpus_is_planned_by_default(tmp_path: Path) -> None:
    ran = autotune(
        *(
            "plan",
            "--quick",
            "--model",
            "70B",
            "--hardware",
            "8xH100-80GB",
            "--nodes",
            "8",
            "--json",
        ),
        folder=tmp_path,
    )
    document = json.loads(ran.stdout)
    assert document["num_nodes"] == 8
    assert document["workload"]["global_batch_size"] == 64
    assert document["front"]


@pytest.mark.slow
def test_a_folder_with_a_configuration_is_planned(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    config = {
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "vocab_size": 32000,
    }
    (tmp_path / "mine" / "config.json").write_text(json.dumps(config))
    ran = autotune(
        "plan", "--quick", "--model", "./mine", "--hardware", "L40S", "--json", folder=tmp_path
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["front"]


def test_where_nothing_fits_it_says_so_as_a_search_does(tmp_path: Path) -> None:
    ran = autotune(
        "plan", "--quick", "--model", "175B", "--hardware", "1xL4", "--json", folder=tmp_path
    )
    assert ran.returncode == 1
    assert "Nothing fits" in ran.stderr
    document = json.loads(ran.stdout)
    assert document["front"] == []
    assert document["missing_bytes"] > 0


def test_a_full_fine_tune_that_neither_card_nor_host_holds_is_told_what_would_fit(
    tmp_path: Path,
) -> None:
    host = ("--hardware", "1xH100-80GB", "--host-memory", "128")
    ran = autotune_here("plan", "--quick", "--model", "13B", *host, "--json", folder=tmp_path)
    assert ran.returncode == 1
    document = json.loads(ran.stdout)
    assert document["missing_by_place"]["host"] > 0
    assert document["missing_by_place"]["device"] == 0
    assert "GiB of host memory are missing" in ran.stderr
    commands = [other["command"] for other in document["alternatives"]]
    for change in ("--method lora", "--hardware 4xH100-80GB", "--host-memory 2"):
        assert any(change in command for command in commands)


QUESTIONS = (
    ("--model", "70B", "--hardware", "1xRTX4090"),
    ("--model", "7B", "--hardware", "1xRTX4090", "--host-memory", "64", "--seq-len", "4096"),
    ("--model", "34B", "--hardware", "2xV100-16GB", "--method", "lora", "--host-memory", "8"),
    ("--model", "175B", "--hardware", "8xA100-80GB", "--global-batch", "24"),
    ("--model", "7B", "--hardware", "host.yaml"),
    ("--model", "13B", "--hardware=4xA100-40GB", "--space", "own.yaml", "--headroom", "0.1"),
)


@pytest.mark.parametrize("question", slow_but(QUESTIONS[3:], QUESTIONS), ids=" ".join)
def test_every_alternative_is_a_command_that_finds_what_fits(
    tmp_path: Path, question: tuple[str, ...]
) -> None:
    (tmp_path / "host.yaml").write_text(
        "{device: Mine, count: 2, memory_gib: 10, tflops: 90, bandwidth_gb_per_s: 800, "
        "bf16: true, host_memory_gib: 32}"
    )
    (tmp_path / "own.yaml").write_text("knobs: {zero_stage: [0], micro_batch_size: [4]}")
    ran = autotune_here("plan", "--quick", *question, "--json", folder=tmp_path)
    assert ran.returncode == 1, ran.stderr
    alternatives = json.loads(ran.stdout)["alternatives"]
    assert alternatives
    for other in alternatives:
        name, *again = shlex.split(other["command"])
        assert name == "autotune"
        assert autotune_here(*again, folder=tmp_path).returncode == 0, other["command"]
        # Never wrapped, so that it can be pasted.
        assert f"    {other['command']}" in ran.stderr.splitlines()


def test_a_neutral_strategy_is_offered_before_one_that_changes_the_loss(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("knobs: {zero_stage: [0], micro_batch_size: [4]}")
    question = ("plan", "--quick", "--model", "13B", "--hardware", "4xA100-40GB")
    ran = autotune_here(*question, "--space", "own.yaml", "--json", folder=tmp_path)
    first = json.loads(ran.stdout)["alternatives"][0]
    assert first["command"].endswith("--space default --json")
    assert first["loss_class"] == "neutral"


def test_a_model_that_no_change_of_one_card_holds_is_offered_more_cards_and_no_other_model(
    tmp_path: Path,
) -> None:
    question = ("plan", "--quick", "--model", "70B", "--hardware", "1xRTX4090", "--json")
    ran = autotune_here(*question, folder=tmp_path)
    commands = [other["command"] for other in json.loads(ran.stdout)["alternatives"]]
    assert "--hardware 2xRTX4090 --json --method qlora" in commands[0]
    assert all("--model 70B" in command for command in commands)


def test_where_nothing_fits_by_far_no_model_is_followed_to_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "mine").mkdir()
    config = dict(PRESETS["70B"].config) | {"vocab_size": 33_333}
    (tmp_path / "mine" / "config.json").write_text(json.dumps(config))
    ran = autotune_here("plan", "--model", "./mine", "--hardware", "1xRTX4090", folder=tmp_path)
    assert ran.returncode == 1
    assert "Activation memory is that of the most similar preset" in ran.stderr
    assert not (tmp_path / "cache").exists()


def test_the_export_goes_where_it_is_asked_to_and_over_nothing(tmp_path: Path) -> None:
    first = autotune(*LORA, "--out", "mine", folder=tmp_path)
    assert first.returncode == 0
    assert "not measured" in first.stderr
    assert "NOT MEASURED" in (tmp_path / "mine" / "README.md").read_text()
    other = autotune(*LORA, "--out", "mine", "--pick", "memory", folder=tmp_path)
    assert other.returncode == 2
    assert "is not empty" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--hardware", "8xH1000"), "--hardware 8xH1000: there is no device kind"),
        (("--hardware", "8xA1000"), "--hardware 8xA1000: A1000 is not supported"),
        (("--hardware", "8xH20"), "--hardware 8xH20: H20 is not supported"),
        (("--hardware", "8xL4", "--nvme", "1e300"), "--nvme must be at most 1,000,000, got 1e300"),
        (("--hardware", f"{'9' * 20}xH100"), "a host has at most 1,024 devices"),
        (("--hardware", "L4", "--nodes", "0"), "--nodes must be at least 1"),
        (("--hardware", "L4", "--host-memory", "0"), "--host-memory must be"),
        (("--hardware", "L4", "--nvme", "-1"), "--nvme must be more than 0 GiB, got -1"),
        (("--hardware", "L4", "--calibrate-from", "nowhere"), "nowhere is not a study folder"),
        (("--hardware", "L4", "--headroom", "1"), "--headroom must be"),
        (("--hardware", "L4", "--pick", "best"), "--pick 'best': choose from throughput"),
        (("--hardware", "L4", "--method", "qat"), "--method 'qat': choose from full"),
        (("--hardware", "L4", "--global-batch", "0"), "--global-batch must be at least 1"),
        (("--hardware", "3xL4", "--global-batch", "4"), "choose 3 or 6"),
        (("--hardware", "L4", "--space", "defualt"), "--space defualt: no such file"),
    ],
)
def test_wrong_use_gets_one_line_and_exit_status_2(
    arguments: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    ran = autotune_here("plan", "--quick", "--model", "tiny", *arguments, folder=tmp_path)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert words in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


def test_a_recorded_study_corrects_a_plan_for_another_model(tmp_path: Path) -> None:
    shutil.copytree(RESULTS / "h100-1.1B-full-8m", tmp_path / "mine")
    ran = autotune(
        *("plan", "--quick", "--model", "3B", "--hardware", "2xH100-80GB", "--json"),
        *("--calibrate-from", "mine"),
        folder=tmp_path,
    )
    assert ran.returncode == 0, ran.stderr
    document = json.loads(ran.stdout)
    assert document["calibrated_from"] == {
        "study": "mine",
        "measured_on": "1.1B, full, 1 x H100-80GB",
        "device_kind": "H100-80GB",
        "num_trials": 30,
        "step_time": True,
    }
    assert any(s.startswith("Corrected by 30 measured trials") for s in document["assumptions"])


@pytest.mark.slow
def test_a_disk_that_is_named_lets_strategies_offload_to_it(tmp_path: Path) -> None:
    question = ("plan", "--quick", "--model", "13B", "--hardware", "1xL4", "--space", "full")
    assert autotune(*question, "--host-memory", "64", folder=tmp_path).returncode == 1
    ran = autotune(*question, "--host-memory", "64", "--nvme", "1000", "--json", folder=tmp_path)
    assert ran.returncode == 0, ran.stderr
    document = json.loads(ran.stdout)
    assert document["front"][0]["strategy"]["offload_optimizer"] == "nvme"
    assert 0 < document["front"][0]["prediction"]["disk_bytes"] < 1000 * 2**30
    assert any("1000 GiB of NVMe disk, at /local_nvme" in s for s in document["assumptions"])


def test_help_has_an_example_and_the_form_of_a_file(tmp_path: Path) -> None:
    ran = autotune("plan", "--help", folder=tmp_path)
    assert "autotune plan --model 70B --hardware 8xH100-80GB --explain" in ran.stdout
    assert "bandwidth_gb_per_s" in ran.stdout
