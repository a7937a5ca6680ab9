"""What runs are launched on: files in `launch/machines/`, each with a `get_config()` that returns a ConfigDict."""

import ast
import dataclasses
import runpy
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mde.errors import UserError, unknown

BYTES_PER_PARAMETER = 16  # in training: the parameter, its gradient and two moments, in float32


@dataclasses.dataclass(frozen=True)
class Machine:
    """A machine, or as many of one kind as work on one run.

    Attributes:
      accelerator: "tpu", "gpu" or "cpu".
      type: what its makers call it: "v5litepod-16", "H100".
      hosts: of one slice; each runs the same command.
      chips_per_host: accelerators of a host; cores of one without any.
      cpus_per_chip: CPU cores that Slurm gives to each accelerator, for reading.
      memory_gb: of one chip.
      slices: of TPUs; hosts, chips and type are those of each.
      spot: whether it may be taken away at any time, which costs less.
      zone: of Google Cloud, where it is to be had.
      runtime: version of a TPU VM's software.
      gke_accelerator: what Google Kubernetes Engine's node label calls it.
      topology: of a TPU slice, as Google Kubernetes Engine wants it.
      partition: of a Slurm cluster.
      hours: longest time of one Slurm job; it is queued again where that was not enough.
    """

    accelerator: str
    type: str
    hosts: int
    chips_per_host: int
    memory_gb: int
    slices: int = 1
    spot: bool = False
    zone: str = ""
    runtime: str = ""
    gke_accelerator: str = ""
    topology: str = ""
    partition: str = ""
    hours: int = 24
    cpus_per_chip: int = 4

    def __post_init__(self) -> None:
        for name, wanted in typing.get_type_hints(type(self)).items():
            value = getattr(self, name)
            if type(value) is not wanted:
                raise UserError(f"machine: {name} = {value!r}: expected {wanted.__name__}")
            if wanted is int and value <= 0:
                raise UserError(f"machine: {name} = {value!r} must be positive")
        if self.accelerator not in ("tpu", "gpu", "cpu"):
            raise unknown("accelerator of a machine", self.accelerator, ("tpu", "gpu", "cpu"))

    @property
    def all_hosts(self) -> int:
        """Hosts of all slices."""
        return self.hosts * self.slices

    def needs(self, launcher: str, *fields: str) -> None:
        """Raises UserError if the launcher needs what the description leaves open."""
        for name in fields:
            if not getattr(self, name):
                raise UserError(f"{launcher} needs the machine's {name}: give --set={name}=…")

    def check_kind(self, launcher: str, *kinds: str) -> None:
        """Raises UserError if the launcher has no such accelerators."""
        if self.accelerator not in kinds:
            raise UserError(f"{launcher} launches on {' and '.join(kinds)}; {self.type} is a {self.accelerator}")

    def check_fits(self, parameters: int, model: str) -> None:
        """Raises UserError if a slice cannot hold one model in training, even if all its chips share it."""
        needed, chips = parameters * BYTES_PER_PARAMETER / 2**30, self.hosts * self.chips_per_host
        if needed > chips * self.memory_gb:
            raise UserError(
                f"preset {model!r} does not fit on {self.type}: parameters, gradients and moments take "
                f"{needed:.0f} GB, {chips} chips have {chips * self.memory_gb} GB"
            )


def load(file: str, changes: Sequence[str] = ()) -> Machine:
    """The machine of a description file.

    Args:
      file: a Python file with `get_config()`.
      changes: "field=value", which override it.

    Raises:
      UserError: no such file, or one that does not describe a machine.
    """
    path = Path(file)
    if not path.is_file():
        known = (Path(__file__).parent / "machines").glob("[!_]*.py")
        raise unknown("machine description", file, [f"launch/machines/{p.name}" for p in known])
    get_config = runpy.run_path(str(path)).get("get_config")
    config = get_config() if callable(get_config) else None
    if not isinstance(config, ConfigDict):
        raise UserError(f"{file}: expected a function get_config() that returns a ConfigDict")
    fields: dict[str, Any] = config.to_dict()
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals:
            raise UserError(f"--set={change}: expected field=value")
        fields[name] = _value(text)
    known_fields = {field.name: field for field in dataclasses.fields(Machine)}
    for name in fields:
        if name not in known_fields:
            raise unknown(f"field of the machine {file}", name, known_fields)
    missing = [n for n, f in known_fields.items() if f.default is dataclasses.MISSING and n not in fields]
    if missing:
        raise UserError(f"{file}: a machine needs {', '.join(missing)}")
    return Machine(**fields)


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
