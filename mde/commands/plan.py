"""`mde plan`: what a training needs, before any machine is rented."""

from typing import Annotated

from mde.arguments import FLAT
from mde.errors import UserError, check_positive
from mde.models import config as model_configs
from mde.results.training_options import ModelChanges
from mde.training import devices, planning
from mde.training.placement import MeshShape
from mde.training.settings import TrainSettings


def plan(
    preset: str,
    mesh: str = "pool=1,data=1,model=1",
    training: Annotated[TrainSettings, FLAT] = TrainSettings(10_000, 256, 2048, 1e-3),
    runs: int | None = None,
    vocab_size: int = 32_000,
    device: str = "tpu-v5e",
    mfu: float = 0.4,
    model: ModelChanges = None,
) -> None:
    """Compiles the train step for devices that are not there; prints memory a device, FLOPs and time.

    Args:
      preset: name of the model; `mde models` lists them.
      mesh: devices along each axis: pool (models), data (parts of a batch), model (parts of a matrix).
      training: of each model.
      runs: how many such models are trained in all, one pool after another; as many as the mesh holds if None.
      vocab_size: tokens in the vocabulary.
      device: its type, for its memory and speed.
      mfu: share of the device's peak that the training reaches: model FLOPs utilisation.
      model: fields of the preset to change; bfloat16 and full recomputation unless they are named.

    Raises:
      UserError: a mesh that does not divide the model or the batch, or something unknown.
    """
    if not 0 < mfu <= 1:
        raise UserError(f"mfu={mfu} must lie between 0 and 1")
    kind, shape = devices.device(device), MeshShape.parse(mesh)
    runs = shape.pool if runs is None else runs
    check_positive(vocab_size=vocab_size, runs=runs)
    config = model_configs.preset(preset, vocab_size, **{"dtype": "bfloat16", "remat": "full", **(model or {})})
    batch_size, seq_len, steps = training.batch_size, training.seq_len, training.steps
    memory = planning.measure(config, training, shape)

    tokens = batch_size * seq_len
    flops = config.train_flops(seq_len) * tokens
    counted = planning.counted_flops(config, seq_len) * tokens
    seconds = flops / (shape.data * shape.model * kind.flops * mfu)
    print(f"{preset} on {shape.devices} {device} ({shape}), {batch_size} sequences of {seq_len} a step and model")
    embedding = config.parameters - config.non_embedding_parameters
    print(f"parameters    {config.non_embedding_parameters:,} + {embedding:,} embedding")
    print(f"              computing in {config.dtype}, remat={config.remat}")
    print("bytes a device")
    for name in ("parameters", "optimizer", "batches", "temporary"):
        print(f"  {name:11} {getattr(memory, name) / 2**30:9.3f} GiB")
    verdict = "fits" if memory.total <= kind.memory else "does not fit"
    print(f"  {'total':11} {memory.total / 2**30:9.3f} GiB; {verdict} in {kind.memory / 2**30:.1f} GiB")
    print(
        f"FLOPs a step  {flops:.4g} a model (XLA counts {counted:.4g}: all of attention, of which causality hides half)"
    )
    print(f"time a step   {seconds:.4g} s at an MFU of {mfu:.0%}: {shape.pool * tokens / seconds:,.0f} tokens/s")
    waves = -(-runs // shape.pool)
    hours = waves * steps * seconds / 3600
    print(f"{steps:,} steps {_duration(steps * seconds)} for {shape.pool * steps * tokens:,} tokens")
    print(
        f"{runs:,} runs, {shape.pool} at a time: {_duration(3600 * hours)}, {shape.devices * hours:,.3g} device-hours"
    )
    print(
        "Temporary memory is what XLA's CPU compiler lays out (activations, gradients, gathered parameters); it keeps "
        "attention scores, which the kernels of TPUs and GPUs do not, and widens bfloat16, so it errs upwards."
    )


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} hours" if seconds >= 3600 else f"{seconds / 60:,.1f} minutes"
