"""The states of all random numbers that a training loop may draw."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def random_state(device: torch.device) -> dict[str, Any]:
    """The states of the random numbers of PyTorch (those of ``device`` as well), numpy and Python."""
    return {
        "torch": torch.get_rng_state().numpy(),
        "cuda": torch.cuda.get_rng_state(device).numpy() if device.type == "cuda" else None,
        "numpy": np.random.get_state(),
        "python": random.getstate(),
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Go on with the random numbers of ``random_state``."""
    torch.set_rng_state(torch.from_numpy(np.array(state["torch"])))
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(torch.from_numpy(np.array(state["cuda"])), device)
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])
