"""Is the device of a config there? Asked before anything long begins. What must not live here: the share of a rank."""

from __future__ import annotations

import torch


class DeviceError(ValueError):
    """`training.device` names what this machine does not have; the message names the remedy."""


def num_gpus() -> int:
    """GPUs that this process can use."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def is_usable(device: str) -> bool:
    """True where this process can compute on `device`.

    Raises:
        DeviceError: no device of torch has such a name.
    """
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise DeviceError(f"training.device={device}: no device has this name; it is cpu, cuda, or cuda:<number>"
                          ) from None
    return wanted.type != "cuda" or (wanted.index or 0) < num_gpus()


def require_device(device: str) -> None:
    """Raise DeviceError where this process cannot compute on `device`."""
    if not is_usable(device):
        reason = ("this build of torch is for the CPU alone" if torch.version.cuda is None else
                  f"torch finds {num_gpus() or 'no'} GPU on this machine")
        raise DeviceError(f"training.device={device}: {reason}; set training.device=cpu, or start this where there is "
                          "such a GPU")
