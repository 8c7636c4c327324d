"""Checkpoints: written so that a kill at any moment leaves the old one or the new one, read so that
a file from anywhere can do no harm.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from torch import Tensor

from manualbp.errors import UsageError

FORMAT = "manualbp checkpoint 2"
"""Stands under "format" in every checkpoint; another number where older programs cannot read it."""


def save(path: Path, payload: Mapping[str, object]) -> None:
    """Write a checkpoint. It holds tensors, plain Python values, and lists and dicts of these.

    Raises UsageError where the file cannot be written, and ValueError for a payload with a key
    "format". In every case `path` holds what it held before, or all of the new checkpoint.
    """
    if "format" in payload:
        raise ValueError('the key "format" is taken: the checkpoint keeps its own format there')
    # Through memory: torch reports a full disk only as a wrong position in the archive.
    buffer = io.BytesIO()
    torch.save({**payload, "format": FORMAT}, buffer)
    replace_file(path, buffer.getbuffer())


def load(path: Path, *, map_location: torch.device | str = "cpu") -> dict[str, Any]:
    """Return what `save` was given. Executes nothing that stands in the file.

    Raises UsageError where there is no such file, or it is truncated, damaged, or no checkpoint of
    this program and format.
    """
    try:
        file = io.BytesIO(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read checkpoint {path}: {error.strerror}") from error
    try:
        # torch compares no checksums: a flipped bit would go unnoticed into the weights.
        with zipfile.ZipFile(file) as archive:
            if archive.testzip() is not None:
                raise zipfile.BadZipFile
        file.seek(0)
        content: object = torch.load(file, map_location, weights_only=True)
    except UnpicklingError as error:
        raise UsageError(
            f"checkpoint {path} was refused: it holds more than tensors and plain values, "
            "and might execute code; use one that this program wrote"
        ) from error
    # Damage in the archive's own tables surfaces as nearly any exception, from zipfile and torch.
    except Exception as error:
        raise UsageError(f"{path} is truncated or damaged, or no checkpoint at all") from error
    payload = cast("dict[str, Any]", content) if isinstance(content, dict) else {}
    found = payload.pop("format", None)
    if not isinstance(found, str):
        raise UsageError(f"{path} is no checkpoint of manualbp: it does not say its format")
    if found != FORMAT:
        raise UsageError(f"{path} has the format {found!r}, and this program reads {FORMAT!r}")
    return payload


def random_state(generators: Mapping[str, torch.Generator]) -> dict[str, Tensor]:
    """Return the state of each random generator, for a checkpoint."""
    return {name: generator.get_state() for name, generator in generators.items()}


def restore_random_state(
    generators: Mapping[str, torch.Generator], states: Mapping[str, Tensor]
) -> None:
    """Put each generator where it stood at `random_state`.

    Raises UsageError where the names differ, or a state is that of another kind of device.
    """
    if states.keys() != generators.keys():
        there, here = ", ".join(sorted(states)), ", ".join(sorted(generators))
        raise UsageError(f"the checkpoint has the random generators {there}; this run has {here}")
    for name, generator in generators.items():
        try:
            # A state is a tensor on the CPU, whatever the device of its generator.
            generator.set_state(states[name].cpu())
        except (RuntimeError, TypeError) as error:
            raise UsageError(
                f"the checkpoint's state of the random generator {name!r} does not fit one on "
                f"{generator.device}; resume on the kind of device that the run began on"
            ) from error


def replace_file(path: Path, content: bytes | memoryview) -> None:
    """Write `content` to `path`, such that nobody ever sees, or is left with, a part of it.

    Raises UsageError where the system refuses. Two processes must not do this to the same path at
    the same time.
    """
    temporary = temporary_path(path)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            # The content must be on the disk before the name is: after a power cut, too, the name
            # then stands for the complete content.
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
    finally:
        # After a success it is gone. After a failure, that failure is what the caller must hear of.
        with suppress(OSError):
            temporary.unlink()


def temporary_path(path: Path) -> Path:
    """Return where `replace_file` prepares the content: in the same directory, hence the same disk.

    Always the same name, so what a killed process left there is used up by the next one.
    """
    return path.with_name(path.name + ".tmp")


def _sync_directory(directory: Path) -> None:
    """Make a rename in `directory` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
