"""Speed and memory of accelerators, as their makers say, and memory of the host."""

import ctypes
import dataclasses
import sys

import jax

from mde.errors import unknown


@dataclasses.dataclass(frozen=True)
class Device:
    """A type of device.

    Attributes:
      flops: peak FLOPs a second in bfloat16, without sparsity.
      memory: bytes.
      kind: what JAX calls it.
    """

    flops: float
    memory: float
    kind: str


DEVICES = {
    "a100-40gb": Device(312e12, 40e9, "NVIDIA A100-SXM4-40GB"),
    "a100": Device(312e12, 80e9, "NVIDIA A100-SXM4-80GB"),
    "h100": Device(989e12, 80e9, "NVIDIA H100 80GB HBM3"),
    "tpu-v4": Device(275e12, 32 * 2**30, "TPU v4"),
    "tpu-v5e": Device(197e12, 16 * 2**30, "TPU v5 lite"),
    "tpu-v5p": Device(459e12, 95 * 2**30, "TPU v5p"),
    "tpu-v6e": Device(918e12, 32 * 2**30, "TPU v6 lite"),
}


def device(name: str) -> Device:
    """The device of this name; raises UserError at an unknown one."""
    if name not in DEVICES:
        raise unknown("device", name, DEVICES)
    return DEVICES[name]


def peak_flops() -> float | None:
    """Of the devices that JAX runs on; None if they are not in the table (a CPU is not)."""
    kind = jax.devices()[0].device_kind
    return next((device.flops for device in DEVICES.values() if device.kind == kind), None)


def release() -> None:
    """Gives the system what compilers have freed: the C library would keep it, some 100 MB for each program."""
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)
