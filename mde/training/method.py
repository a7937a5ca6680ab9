"""What a run does with each batch: plain training, or training that finds weights of the domains on the way."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
import optax

from mde.models import decoder
from mde.models.config import DecoderConfig
from mde.training.settings import TrainSettings
from mde.training.step import TrainState, train_step


class State(Protocol):
    """What a run goes on from; a NamedTuple of arrays."""

    @property
    def params(self) -> decoder.Params:
        """The model."""

    @property
    def opt_state(self) -> optax.OptState:
        """The optimizer's."""


class Method(Protocol):
    """How a run is trained; hashable, for programs are compiled with it."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """What every step reports beside `loss` and `grad_norm`: names of scalars."""

    def record(self) -> dict[str, Any]:
        """What a run's record says of it."""

    def arranged(self, batch: Mapping[str, np.ndarray], weights: np.ndarray, first: int, multiple: int) -> Any:
        """The batch that steps are given; its arrays' first dimension is a multiple of `multiple`.

        Args:
          batch: arrays [B, L + 1].
          weights: [K] of the mixture that it is from.
          first: how many sequences of it came before.
          multiple: devices that share a batch.
        """

    def begin(self, state: TrainState) -> Any:
        """The state before the first step, of a model that plain training would begin with."""

    def step(
        self,
        config: DecoderConfig,
        settings: TrainSettings,
        state: Any,
        batch: Any,
        rate: jax.Array,
        *reference: decoder.Params,
    ) -> tuple[Any, dict[str, jax.Array]]:
        """One step: the state after it, and its metrics.

        Args:
          config: architecture.
          settings: the training.
          state: before the step.
          batch: as `arranged` gives it.
          rate: the learning rate.
          *reference: parameters of the model that the run is compared with, if there is one.
        """


@dataclasses.dataclass(frozen=True)
class Descent:
    """Plain training: every token of a batch counts the same."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """None beside those of every run."""
        return ()

    def record(self) -> dict[str, Any]:
        """Nothing: that is how runs are trained."""
        return {}

    def arranged(self, batch: Mapping[str, np.ndarray], weights: np.ndarray, first: int, multiple: int) -> Any:
        """The batch as it is."""
        return batch

    def begin(self, state: TrainState) -> TrainState:
        """The state as it is."""
        return state

    def step(
        self,
        config: DecoderConfig,
        settings: TrainSettings,
        state: TrainState,
        batch: Any,
        rate: jax.Array,
        *reference: decoder.Params,
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """The optimizer's step."""
        return train_step(config, settings, state, batch["tokens"], batch["segments"], rate)


PLAIN = Descent()


class Reweighted(NamedTuple):
    """The state of a run that finds weights of its domains.

    Attributes:
      params: the model.
      opt_state: the optimizer's.
      weights: [K] of the domains, which sum to 1.
      scores: [K] what each domain's weight was last multiplied for, which stands in for a batch without the domain.
    """

    params: decoder.Params
    opt_state: optax.OptState
    weights: jax.Array
    scores: jax.Array
