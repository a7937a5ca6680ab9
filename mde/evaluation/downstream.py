"""Our language models as lm-evaluation-harness sees them, so that its own tasks run on them.

The only module that imports `lm_eval`.
"""

import difflib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from tqdm import tqdm

from mde.domains.tokenizers import Tokenizer
from mde.errors import UserError, unknown
from mde.evaluation.language_model import ExpertMixture
from mde.evaluation.scoring import MEMORY, windows_per_batch

_STEP = 64  # texts are padded to multiples of it, so that few programs are compiled

Pair = tuple[Any, list[int], list[int]]  # the texts or None, tokens of the context, tokens of the continuation


class HarnessModel(TemplateLM):
    """An `lm_eval` model: log-likelihoods, rolling ones, and greedy generation with a key-value cache.

    Texts begin with the tokenizer's START, as in training; of a text that is too long the beginning is left out.

    Args:
      model: what it says.
      tokenizer: of the study that the model is of.
      max_length: tokens that the model reads at a time.
      batch_size: texts at a time; by default as many as keep the device busy.
    """

    def __init__(self, model: ExpertMixture, tokenizer: Tokenizer, max_length: int, batch_size: int | None = None):
        super().__init__()
        self._model, self._tokenizer, self._batch_size = model, tokenizer, batch_size
        self.max_length = max_length

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self._tokenizer.end

    @property
    def prefix_token_id(self) -> int:
        """START, which stands before a text without a context."""
        return self._tokenizer.start

    @property
    def max_gen_toks(self) -> int:
        """Tokens of an answer, where a task does not say how many: half of what the model reads, and 256 at most."""
        return min(256, self.max_length // 2)

    @property
    def tokenizer_name(self) -> str:
        """Nothing: requests are not kept between calls."""
        return ""

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Tokens of a text, after START unless `add_special_tokens` is False."""
        tokens = self._tokenizer.encode_batch([string])[0][:-1].tolist()
        return tokens if add_special_tokens is False else [self._tokenizer.start, *tokens]

    def _loglikelihood_tokens(
        self, requests: list[Pair], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Log-probability in nats of each continuation after its context, and whether it is the greedy one."""
        found: dict[int, tuple[float, bool]] = {}
        lengths = [min(len(context) + len(added), self.max_length + 1) for _, context, added in requests]
        with tqdm(total=len(requests), desc="log-likelihoods", disable=disable_tqdm) as bar:
            for batch, length in self._batches([length - 1 for length in lengths]):
                tokens, segments = np.zeros((2, len(batch), length + 1), np.int32)
                for row, i in enumerate(batch):
                    _, context, added = requests[i]
                    if len(added) > self.max_length:
                        raise UserError(f"a continuation of {len(added)} tokens; the model reads {self.max_length}")
                    tokens[row, : lengths[i]] = [*context, *added][-lengths[i] :]
                    segments[row, : lengths[i]] = 1
                log_probs, greedy = self._model.score(tokens, segments)
                for row, i in enumerate(batch):
                    place = slice(lengths[i] - 1 - len(requests[i][2]), lengths[i] - 1)
                    found[i] = float(log_probs[row, place].sum(dtype=np.float64)), bool(greedy[row, place].all())
                bar.update(len(set(batch)))
        return [found[i] for i in range(len(requests))]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability in nats of each whole text, in windows that each predict other tokens."""
        windows: list[Pair] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0], add_special_tokens=False)
            pairs = utils.get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1)
            windows += [(None, *utils.make_disjoint_window(pair)) for pair in pairs]
            owners += [owner] * (len(windows) - len(owners))
        log_probs = [log_prob for log_prob, _ in self._loglikelihood_tokens(windows, disable_tqdm)]
        return np.bincount(owners, weights=log_probs, minlength=len(requests)).tolist()

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy answers, each up to the first of its stop sequences, or end-of-text."""
        found: dict[int, str] = {}
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(i)
        with tqdm(total=len(requests), desc="answers", disable=disable_tqdm) as bar:
            for members in groups.values():
                settings: dict[str, Any] = dict(normalize_gen_kwargs(requests[members[0]].args[1], self.max_gen_toks))
                if settings.get("do_sample"):
                    raise UserError("a task asks for sampled answers (do_sample); these models answer greedily")
                stops = [stop for stop in handle_stop_sequences(settings.get("until"), None) if stop]
                most = settings["max_gen_toks"]
                if most >= self.max_length:
                    raise UserError(f"a task asks for answers of {most} tokens; the model reads {self.max_length}")
                prompts = [self.tok_encode(requests[i].args[0])[most - self.max_length :] for i in members]
                for batch, _ in self._batches(list(map(len, prompts))):
                    added = self._model.generate([prompts[j] for j in batch], most, self._stopping(stops))
                    for j, tokens in zip(batch, added, strict=True):
                        kept = tokens[:-1] if tokens[-1] == self.eot_token_id else tokens
                        found[members[j]] = postprocess_generated_text(self._tokenizer.decode(kept), stops, None)
                    bar.update(len(set(batch)))
        return [found[i] for i in range(len(requests))]

    def _stopping(self, stops: Sequence[str]) -> Callable[[list[int]], bool]:
        def finished(tokens: list[int]) -> bool:
            if tokens[-1] == self.eot_token_id:
                return True
            text = self._tokenizer.decode(tokens) if stops else ""
            return any(stop in text for stop in stops)

        return finished

    def _batches(self, lengths: Sequence[int]) -> Iterator[tuple[list[int], int]]:
        """Numbers of texts, long ones first, and the length that a batch is padded to; the last is filled up."""
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        start = 0
        while start < len(order):
            length = min(-(-lengths[order[start]] // _STEP) * _STEP, self.max_length)
            size = self._batch_size or windows_per_batch(self._model.config, len(order), length, MEMORY // 2)
            batch = order[start : start + size]
            yield [*batch, *batch[-1:] * (size - len(batch))], length
            start += size


def results_of(
    model: HarnessModel,
    tasks: Sequence[str],
    include_path: str | None = None,
    num_fewshot: int | None = None,
    limit: float | None = None,
) -> dict[str, Any]:
    """What the harness says of a model on tasks: its `results`, `versions`, `n-shot`, `n-samples` and `configs`.

    Raises:
      UserError: a task that the harness does not know, or whose data is not there.
    """
    from lm_eval import evaluator
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=include_path, include_defaults=not include_path)
    if not all(manager.match_tasks([task]) for task in tasks):  # some are the harness's own, thousands of files
        manager = TaskManager(include_path=include_path)
    for task in tasks:
        if not manager.match_tasks([task]):
            raise unknown("task of lm-evaluation-harness", task, difflib.get_close_matches(task, manager.all_tasks, 9))
    found = evaluator.simple_evaluate(
        model=model,
        tasks=list(tasks),
        num_fewshot=num_fewshot,
        limit=limit,
        task_manager=manager,
        log_samples=False,
        bootstrap_iters=1000,
    )
    return {key: found[key] for key in ("results", "versions", "n-shot", "n-samples", "configs")}
