"""Checks of the installed packages, against the tested ranges in autotune's own metadata.

Reads metadata only: no package is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import metadata
from typing import TYPE_CHECKING

from autotune.doctor.check import Check, CheckStatus

if TYPE_CHECKING:
    from packaging.requirements import Requirement

__all__ = ["examine_packages"]


def examine_packages(*, has_gpu: bool) -> Iterator[Check]:
    """Python, the core packages, and what only a GPU makes use of."""
    yield _python()
    for requirement in _requirements(extra=""):
        yield _package(requirement)
    yield _liger(has_gpu=has_gpu)
    if has_gpu:
        yield _torch_build()


def _python() -> Check:
    version = ".".join(str(part) for part in sys.version_info[:3])
    name = "Python"
    try:
        wanted = metadata.metadata("autotune")["Requires-Python"]
    except metadata.PackageNotFoundError:
        return Check.warning(
            name, f"{version}; autotune itself is not installed", "type: pip install -e ."
        )
    from packaging.specifiers import SpecifierSet

    if version in SpecifierSet(wanted):
        return Check.ok(name, f"{version} (needs {wanted})")
    return Check.missing(
        name,
        f"{version}, but autotune needs {wanted}",
        "type: uv venv --python 3.12, then install autotune there",
    )


def _requirements(extra: str) -> Iterator[Requirement]:
    """What autotune itself asks of this environment: its core, or one extra alone."""
    from packaging.requirements import Requirement

    try:
        texts = metadata.requires("autotune") or []
    except metadata.PackageNotFoundError:
        return
    for text in texts:
        requirement = Requirement(text)
        marker = requirement.marker
        in_core = marker is None or marker.evaluate({"extra": ""})
        if marker is None or marker.evaluate({"extra": extra}):
            if extra and in_core:
                continue
            yield requirement


def _package(requirement: Requirement) -> Check:
    name, wanted = requirement.name, str(requirement.specifier)
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    remedy = f"type: pip install '{name}{extras}{wanted}'"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Check.missing(name, f"not installed (tested: {wanted})", remedy)
    if requirement.specifier.contains(version, prereleases=True):
        return Check.ok(name, f"{version} (tested: {wanted})")
    return Check.warning(name, f"{version} is outside the tested range {wanted}", remedy)


def _liger(*, has_gpu: bool) -> Check:
    name = "liger-kernel"
    requirement = next(_requirements(extra="liger"), None)
    if requirement is None:
        return Check.ok(
            name, "optional; the tested range is unknown because autotune is not installed"
        )
    check = _package(requirement)
    if check.status is not CheckStatus.MISSING:
        return check
    if not has_gpu:
        return Check.ok(name, "not installed; not needed without a GPU")
    return Check.warning(
        name,
        "not installed; fused_kernels, often the fastest choice, will not be tried",
        "type: pip install 'autotune[liger]'",
    )


def _torch_build() -> Check:
    """A CPU build of torch beside a GPU is installed in good faith and fails in every trial."""
    name = "torch build"
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return Check.missing(name, "torch is not installed", "type: pip install torch")
    if version.endswith("+cpu"):
        return Check.missing(
            name,
            f"{version} cannot use the GPU",
            "type: pip install --force-reinstall torch --index-url "
            "https://download.pytorch.org/whl/cu130",
        )
    return Check.ok(name, version)
