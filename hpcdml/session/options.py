"""The options of a session: those of ``hpcdml train`` that do not belong to what the user's own loop does."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from hpcdml.config import PolicyOptions, TrainConfig
from hpcdml.errors import UsageError

CHECKPOINT_NAMES = (
    *("checkpoint_seconds", "checkpoint_rounds", "checkpoint_samples", "keep_checkpoints", "keep_every"),
    *("resume", "signals"),
)
"""Those that are about checkpoints of the run."""

NAMES = (
    *(field.name for field in dataclasses.fields(PolicyOptions)),
    *("epochs", "max_samples", "max_seconds"),
    *("output", "overwrite", "seed", "eval_seconds", "threads", "bind", "chunk_kib", "poll_us", "progress"),
    *("cuda_aware", "worker_timeout", "min_workers", "debug"),
    *CHECKPOINT_NAMES,
)
"""What ``Session`` takes, with the meaning that ``hpcdml train --help`` gives."""


def configure(given: Mapping[str, Any]) -> TrainConfig:
    """The configuration that a session's keyword arguments stand for.

    Raises:
        UsageError: a name is unknown, or a value out of range.
    """
    for name in given:
        if name not in NAMES:
            raise UsageError(f"Session({name}=...): there is no such option; there are {', '.join(NAMES)}")
    try:
        return TrainConfig.from_flat(dict(given))
    except TypeError as error:  # a text where a number belongs
        shown = ", ".join(f"{name}={value!r}" for name, value in given.items())
        raise UsageError(f"Session({shown}): {error}") from error
    except UsageError as error:
        raise in_python(error) from error


def in_python(error: UsageError) -> UsageError:
    """An error that speaks of options of the command line, as one that speaks of keyword arguments."""
    text = re.sub(r"add --([a-z-]+)", lambda found: f"add {found[1]}=True", str(error))
    return UsageError(re.sub(r"--([a-z]+(?:-[a-z]+)*)", lambda found: found[1].replace("-", "_"), text))
