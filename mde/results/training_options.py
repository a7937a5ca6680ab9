"""What commands that train models take beside what they train: changes of model and settings, and how runs go."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from mde.arguments import FLAT, Changed
from mde.errors import check_positive
from mde.models.config import DecoderConfig
from mde.training.settings import TrainSettings, Watching

Changes = Mapping[str, Any] | None
ModelChanges = Annotated[Changes, Changed(DecoderConfig, without=("vocab_size",))]  # fields of the preset
TrainingChanges = Annotated[Changes, Changed(TrainSettings), FLAT]  # settings that differ from the study's
LengthlessChanges = Annotated[Changes, Changed(TrainSettings, without=("steps",)), FLAT]  # the same, steps apart


@dataclass(frozen=True)
class Running:
    """How runs are carried out.

    Attributes:
      mesh: devices along each axis, such as pool=4,data=2,model=1; one per run if None.
      checkpoint_every: steps between states to resume from.
      checkpoint_minutes: minutes after which a state is saved as well.
      validate_every: steps between losses on the validation text of every domain, in metrics.jsonl; 0 for never.
      tensorboard: whether each run's directory gets event files (this imports TensorFlow); not in buckets.
    """

    mesh: str | None = None
    checkpoint_every: int = 500
    checkpoint_minutes: float | None = None
    validate_every: int = 0
    tensorboard: bool = False

    def __post_init__(self) -> None:
        check_positive(checkpoint_every=self.checkpoint_every)

    @property
    def watching(self) -> Watching:
        """What is measured on the way."""
        return Watching(self.validate_every, self.tensorboard)


def changed(settings: Mapping[str, Any], training: Changes, **own: Any) -> TrainSettings:
    """Settings with changes, those that are not None.

    Raises:
      UserError: settings that make no sense.
    """
    given = {name: value for name, value in {**(training or {}), **own}.items() if value is not None}
    return TrainSettings.from_dict({**settings, **given})
