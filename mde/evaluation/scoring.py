"""Token log-probabilities of models on the evaluation domains.

Shapes: N windows, L predicted tokens a window, T scored tokens in all, J evaluation domains.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from mde.data.tokens import TokenStore, Window
from mde.errors import UserError
from mde.models import decoder, masking
from mde.models.config import DecoderConfig

MEMORY = 1 << 30  # bytes of activations on a device
_TOKENS_PER_BATCH = {"cpu": 2048}  # more does not help there (measured); an accelerator wants more, 2^16


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
    """The text that every model is scored on: the first whole documents of each domain, cut into windows.

    Attributes:
      domains: names of the J evaluation domains.
      tokens: [N, L + 1] int32.
      segments: [N, L + 1] int32 document numbers, 0 for padding, below zero for what is read and not scored.
      window_domains: [N] index of the domain that each window belongs to.
      bytes: [J] UTF-8 bytes of the text that is scored.
      documents: [N, L + 1] int32 number of each token's document within its domain, from 0; of an end task, its answer.
      masked: whether it is for encoders: hidden tokens, and they only, are scored (see `models.masking`).
    """

    domains: tuple[str, ...]
    tokens: np.ndarray
    segments: np.ndarray
    window_domains: np.ndarray
    bytes: np.ndarray
    documents: np.ndarray
    masked: bool = False

    @property
    def seq_len(self) -> int:
        """L, predicted tokens of a window."""
        return self.tokens.shape[1] - 1

    @property
    def mask(self) -> np.ndarray:
        """[N, L] which targets are scored; log-probs of T scored tokens are `x[mask]`, window by window."""
        return decoder.scored(self.tokens, self.segments, self.masked)

    @property
    def segment_ids(self) -> np.ndarray:
        """[T] index of the domain of every scored token."""
        return np.repeat(self.window_domains, self.mask.sum(axis=1))

    @property
    def sequence_ids(self) -> np.ndarray:
        """[T] numbers the stretches of text that a model read as one: a document's part of a window."""
        window = np.arange(len(self.tokens))[:, None] * (self.tokens.shape[1] + 1)
        _, ids = np.unique((window + self.segments[:, 1:])[self.mask], return_inverse=True)
        return ids.astype(np.int32)

    @property
    def document_ids(self) -> np.ndarray:
        """[T] numbers of the documents of all domains together, one after the other, of every scored token."""
        within = np.repeat(self.window_domains, self.mask.sum(axis=1)) * (int(self.documents.max()) + 1)
        _, ids = np.unique(within + self.documents[:, 1:][self.mask], return_inverse=True)
        return ids

    def losses(self, log_probs_T: np.ndarray) -> np.ndarray:
        """Mean loss of each domain in nats per token, [J] float64."""
        sums = np.bincount(self.segment_ids, weights=-log_probs_T.astype(np.float64), minlength=len(self.domains))
        return sums / self.token_counts

    @property
    def token_counts(self) -> np.ndarray:
        """[J] scored tokens of each domain."""
        return np.bincount(self.segment_ids, minlength=len(self.domains))

    def subset(self, windows_per_domain: int) -> "EvaluationSet":
        """The first windows of each domain; `bytes` are scaled by the share of tokens that is left."""
        keep = np.concatenate(
            [np.flatnonzero(self.window_domains == j)[:windows_per_domain] for j in range(len(self.domains))]
        )
        part = dataclasses.replace(
            self,
            tokens=self.tokens[keep],
            segments=self.segments[keep],
            window_domains=self.window_domains[keep],
            documents=self.documents[keep],
        )
        return dataclasses.replace(part, bytes=self.bytes * part.token_counts / self.token_counts)


def evaluation_set(
    stores: Mapping[str, TokenStore],
    tokens_per_domain: int,
    seq_len: int,
    examples_per_task: int | None = None,
    masked: bool = False,
) -> EvaluationSet:
    """Takes whole documents of each store until there are `tokens_per_domain`, or all; of an end task whole examples.

    Documents are cut into windows; those of an end task stand in one window each, and of one that is too long the
    beginning is left out. For encoders (`masked`) 15% of the tokens are hidden.

    Raises:
      UserError: a domain has no document.
    """
    windows: list[Window] = []
    domains, sizes, numbers = [], [], []
    for j, (name, store) in enumerate(stores.items()):
        if store.end_task:
            found, n_bytes = _answers(store, examples_per_task, seq_len)
        else:
            found, n_bytes = _documents(store, tokens_per_domain, seq_len)
        if not found:
            raise UserError(f"evaluation domain {name!r} is empty: no document in {store.directory}")
        windows += found
        domains += [j] * len(found)
        numbers += _numbers(found, continued=not store.end_task)
        sizes.append(n_bytes)
    tokens, segments = (np.stack([getattr(window, what) for window in windows]) for what in ("tokens", "segments"))
    sizes_J = np.asarray(sizes, np.float64)
    made = EvaluationSet(tuple(stores), tokens, segments, np.asarray(domains), sizes_J, np.stack(numbers))
    return hide(made) if masked else made


def hide(data: EvaluationSet) -> EvaluationSet:
    """The text as encoders are scored on it, `bytes` scaled by the share of tokens that are hidden.

    Raises:
      UserError: a domain with so little text that nothing of it is hidden.
    """
    tokens = data.tokens.copy()
    for j, name in enumerate(data.domains):
        mine = data.window_domains == j
        tokens[mine] = masking.fixed(tokens[mine], data.mask[mine])
        if not (tokens[mine] < 0).any():
            raise UserError(f"evaluation domain {name!r}: too little text to hide {masking.SHARE:.0%} of its tokens")
    hidden = dataclasses.replace(data, tokens=tokens, masked=True)
    return dataclasses.replace(hidden, bytes=data.bytes * hidden.token_counts / data.token_counts)


def _documents(store: TokenStore, at_least: int, seq_len: int) -> tuple[list[Window], int]:
    """The first whole documents in windows, and their bytes."""
    n_tokens, n_bytes = store.whole_documents(at_least)
    windows = []
    for start in range(0, n_tokens - 1, seq_len):
        window = store.read(start, start + seq_len + 1)
        beyond = np.arange(start, start + seq_len + 1) >= n_tokens
        windows.append(Window(window.tokens, np.where(beyond, 0, window.segments)))
    return windows, n_bytes


def _numbers(windows: list[Window], continued: bool) -> list[np.ndarray]:
    """[L + 1] the number of each token's document within its domain, by window.

    Segments begin at 1 in every window. Where text is `continued`, a window's first token is the last one of the window
    before, and so is its document.
    """
    first, found = 0, []
    for window in windows:
        numbers = np.abs(window.segments)
        found.append(first + np.maximum(numbers, 1) - 1)
        first += int(numbers.max()) - int(continued)
    return found


def _answers(store: TokenStore, examples: int | None, seq_len: int) -> tuple[list[Window], int]:
    """The answers of the first examples, as many in a window as there is room for, and their bytes."""
    count = documents_of(store, examples)
    windows: list[Window] = []
    room = number = 0
    for first, last in itertools.pairwise(store.bounds[: count + 1]):
        first = max(first, last - seq_len - 1)
        if last - first > room:
            windows.append(Window(np.zeros(seq_len + 1, np.int32), np.zeros(seq_len + 1, np.int32)))
            room, number = seq_len + 1, 0
        number += 1
        place = slice(seq_len + 1 - room, seq_len + 1 - room + last - first)
        document = store.read(first, last)
        windows[-1].tokens[place], windows[-1].segments[place] = document.tokens, document.segments * number
        room -= last - first
    return windows, int(store.bytes[:count].sum())


def documents_of(store: TokenStore, examples: int | None) -> int:
    """How many documents of an end task's store are of its first examples; all by default."""
    return store.n_documents if examples is None else int(np.searchsorted(store.examples, examples))


def check_vocabulary(config: DecoderConfig, data: EvaluationSet) -> None:
    """Raises UserError where the text has a token that the model's vocabulary has not, with its domain and place."""
    if data.masked != config.masked:
        kinds = {True: "an encoder", False: "a decoder"}
        raise UserError(f"evaluation text for {kinds[data.masked]}, and the model is {kinds[config.masked]}")
    tokens = np.where(data.tokens < 0, ~data.tokens, data.tokens) if data.masked else data.tokens
    beyond = (tokens < 0) | (tokens >= config.vocab_size)
    if beyond.any():
        window, position = np.argwhere(beyond)[0]
        raise UserError(
            f"evaluation domain {data.domains[data.window_domains[window]]!r}: token "
            f"{tokens[window, position]} at position {position} of window {window}, but the model has a "
            f"vocabulary of {config.vocab_size}: text and model are of different tokenizers"
        )


def windows_per_batch(config: DecoderConfig, windows: int, seq_len: int, memory: int = MEMORY) -> int:
    """How many windows a device takes at a time: enough to keep it busy, within `memory` bytes of activations."""
    c = config
    floats = 2 * c.vocab_size + 4 * c.d_ff + 12 * c.d_model + 2 * c.n_heads * seq_len
    tokens = min(_TOKENS_PER_BATCH.get(jax.default_backend(), 1 << 16), memory // (4 * floats))
    most = max(1, tokens // seq_len)
    return -(-windows // -(-windows // most))  # as many batches as `most` makes, and all alike


def token_log_probs(config: DecoderConfig, params: decoder.Params, tokens: jax.Array, segments: jax.Array) -> jax.Array:
    """The decoder's, at most 0: where a token is all but certain, rounding can leave a logarithm above."""
    return jnp.minimum(decoder.token_log_probs(config, params, tokens, segments), 0)


class Scorer:
    """Scores models of one architecture on one evaluation set: a pass over the tokens, batches over the devices.

    All devices of this process take one model at a time, so as many of them are busy with one model as with many, and
    what a score is does not depend on how many there are.

    Args:
      config: architecture of the models.
      data: the text.
      batch_size: windows that a device takes at a time; by default `windows_per_batch`.
    """

    def __init__(self, config: DecoderConfig, data: EvaluationSet, batch_size: int | None = None):
        check_vocabulary(config, data)
        self._data = data
        devices = jax.local_devices()
        per_device = -(-len(data.tokens) // len(devices))
        self._batch = len(devices) * (batch_size or windows_per_batch(config, per_device, data.seq_len))
        self._mesh = jax.make_mesh((len(devices),), ("data",), (AxisType.Auto,), devices=devices)

        log_probs = functools.partial(token_log_probs, config)
        specs = (P(), P("data"), P("data"))
        mapped = jax.shard_map(log_probs, mesh=self._mesh, in_specs=specs, out_specs=P("data"), check_vma=False)
        self._program = jax.jit(mapped)

    def __call__(
        self,
        params: decoder.Params,
        domains: Collection[int] | None = None,
        advance: Callable[[int], object] = lambda tokens: None,
    ) -> Iterator[tuple[int, np.ndarray]]:
        """The log-probs of one domain after the other, each as soon as it is through.

        Args:
          params: of the model.
          domains: indices of those to score; all by default.
          advance: told how many more tokens were scored.

        Yields:
          The index of a domain and its scored tokens' log-probs in nats, [T_j] float32.
        """
        data = self._data
        wanted = sorted(range(len(data.domains)) if domains is None else domains)
        chosen = np.flatnonzero(np.isin(data.window_domains, wanted))
        owners, mask = data.window_domains[chosen], data.mask[chosen]
        log_probs = np.empty(mask.shape, np.float32)
        ends = {j: int(np.flatnonzero(owners == j)[-1]) + 1 for j in wanted}
        done = 0
        for part in self._batches(params, chosen):
            log_probs[done : done + len(part)] = part
            advance(int(mask[done : done + len(part)].sum()))
            done += len(part)
            while wanted and ends[wanted[0]] <= done:
                j = wanted.pop(0)
                mine = owners == j
                yield j, log_probs[mine][mask[mine]]

    def _batches(self, params: decoder.Params, chosen: np.ndarray) -> Iterator[np.ndarray]:
        """[B, L] log-probs of the chosen windows, read one batch late so that the devices never wait for us."""
        params = jax.device_put(params, NamedSharding(self._mesh, P()))
        tokens, segments = self._data.tokens[chosen], self._data.segments[chosen]
        unread: jax.Array | None = None
        for start in range(0, len(chosen), self._batch):
            part = slice(start, start + self._batch)
            batch = (filled_up(x[part], self._batch) for x in (tokens, segments))
            running = self._program(params, *jax.device_put(tuple(batch), NamedSharding(self._mesh, P("data"))))
            if unread is not None:
                yield np.asarray(unread)
            unread = running
        if unread is not None:
            yield np.asarray(unread)[: len(chosen) - start]


def filled_up(windows: np.ndarray, count: int) -> np.ndarray:
    """[count, L + 1] the windows, and padding windows (document 0) after them."""
    return np.pad(windows, ((0, count - len(windows)), (0, 0)))
