"""`merged_nll` and scoring, beside what one would write instead.

Models of 1M and 10M parameters, seven experts. The share of the peak is matmul FLOPs (of averaging and of the forward
passes, attention counted in full) a second over those of large float32 matrix products on all cores, in the same
rounds. The contender averages state dictionaries, loads and evaluates one model after another in PyTorch's
`transformers`, if that is installed. It is given fewer candidates, and its time is scaled; how far the two differ in
their losses is in the table. Where PyTorch itself runs above half of the peak, twice its pace is not to be had.
"""

import functools
import os
from collections.abc import Callable

os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count={len(os.sched_getaffinity(0))}")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # PyTorch's threads must not spin while the others run

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from benchmarks import peers
from benchmarks.timing import Row, interleaved
from mde.evaluation.merged import MergedLosses
from mde.evaluation.scoring import EvaluationSet, Scorer
from mde.models import decoder
from mde.models.config import DecoderConfig
from mde.models.huggingface import named_tensors

K, J = 7, 7
CONFIGS = {  # architecture, tokens a window
    "1M": (DecoderConfig(2048, d_model=128, n_layers=4, n_heads=4, n_kv_heads=4, d_ff=352), 128),
    "10M": (DecoderConfig(4096, d_model=320, n_layers=7, n_heads=5, n_kv_heads=5, d_ff=864), 256),
}
CANDIDATES, FEW, TOKENS, ROUNDS = 64, 4, 3584, 3
SIZE = 2048  # of the matrices whose product is the peak


def merged(name: str) -> list[Row]:
    config, seq_len = CONFIGS[name]
    rng = np.random.default_rng(0)
    experts = [jax.tree.map(np.array, decoder.init(config, k)) for k in range(K)]
    data = text(rng, config, seq_len, TOKENS)
    weights = rng.dirichlet(np.ones(K), CANDIDATES)
    losses = MergedLosses(config, experts, data)
    peak, peak_flops = matmul()
    contenders: dict[str, Callable[[], object]] = {"peak": peak, "ours": lambda: losses(weights)}
    theirs = in_transformers(config, experts, data)
    if theirs is not None:
        contenders["theirs"] = lambda: theirs(weights[:FEW])
    seconds = interleaved(contenders, ROUNDS)
    tokens = data.tokens[:, 1:].size
    flops = 2 * K * parameters(config) + tokens * token_flops(config, seq_len)  # of a candidate
    reach = peak_flops / seconds["peak"]
    ours = seconds["ours"] / CANDIDATES
    rows = [
        Row(f"merged_nll, {CANDIDATES} candidates of {name}, {tokens:,} tokens, seconds", f"{seconds['ours']:.1f}"),
        Row(f"   share of the matmul peak, {reach / 1e9:.0f} GFLOP/s", f"{flops / ours / reach:.0%}", "60%"),
    ]
    if theirs is None:
        return [*rows, Row("   PyTorch is not measured: pip install torch transformers", "")]
    taken = seconds["theirs"] / FEW
    apart = np.abs(losses(weights[:FEW]) - theirs(weights[:FEW])).max()
    return [
        *rows,
        Row(f"   PyTorch, a model at a time, over it ({FEW} candidates, scaled)", f"{taken / ours:.2f}×", "2×"),
        Row("   PyTorch's share of the peak", f"{flops / taken / reach:.0%}"),
        Row("   the most that any loss differs, nats per token", f"{apart:.0e}", "at most 1e-5"),
    ]


def scored() -> list[Row]:
    """One model's pass over the tokens beside a loop that waits for each batch, and both beside the matmuls alone."""
    config, seq_len = CONFIGS["1M"]
    params = decoder.init(config, 0)
    data = text(np.random.default_rng(0), config, seq_len, 16 * TOKENS)
    scorer = Scorer(config, data)
    one = jax.jit(functools.partial(decoder.token_log_probs, config))

    def loop() -> None:
        for start in range(0, len(data.tokens), 16):
            np.asarray(one(params, data.tokens[start : start + 16], data.segments[start : start + 16]))

    peak, peak_flops = matmul()
    seconds = interleaved({"peak": peak, "ours": lambda: list(scorer(params)), "loop": loop}, ROUNDS)
    tokens = data.tokens[:, 1:].size
    share = tokens * token_flops(config, seq_len) / seconds["ours"] / (peak_flops / seconds["peak"])
    return [
        Row(f"mde score, 1M, {tokens:,} tokens, seconds", f"{seconds['ours']:.2f}"),
        Row("   share of the matmul peak", f"{share:.0%}"),
        Row("   a plain loop over batches of 16 windows, over it", f"{seconds['loop'] / seconds['ours']:.2f}×"),
    ]


def text(rng: np.random.Generator, config: DecoderConfig, seq_len: int, tokens: int) -> EvaluationSet:
    """Random tokens, a document a window, so that plain causal attention is right for the contender."""
    windows = tokens // (J * seq_len) * J
    return EvaluationSet(
        tuple(f"domain-{j}" for j in range(J)),
        rng.integers(1, config.vocab_size, (windows, seq_len + 1)).astype(np.int32),
        np.ones((windows, seq_len + 1), np.int32),
        np.repeat(np.arange(J), windows // J),
        np.ones(J),
        np.repeat(np.arange(windows, dtype=np.int32)[:, None], seq_len + 1, axis=1),
    )


def parameters(config: DecoderConfig) -> int:
    return sum(x.size for x in jax.tree.leaves(jax.eval_shape(lambda: decoder.init(config, 0))))


def token_flops(config: DecoderConfig, seq_len: int) -> int:
    """Matmul FLOPs of the forward pass on one token: two for each parameter, and those of attention."""
    return 2 * config.matmul_parameters + 4 * config.n_layers * seq_len * config.d_model


def matmul() -> tuple[Callable[[], object], int]:
    """Large products, one chain a device, and their FLOPs."""
    devices, repeats = jax.device_count(), 8
    mesh = jax.make_mesh((devices,), ("devices",), (AxisType.Auto,))
    chain = lambda a: jax.lax.fori_loop(0, repeats, lambda _, x: a[0] @ x, a[0])[None]  # noqa: E731
    program = jax.jit(jax.shard_map(chain, mesh=mesh, in_specs=P("devices"), out_specs=P("devices"), check_vma=False))
    a = jnp.asarray(np.random.default_rng(0).standard_normal((devices, SIZE, SIZE), np.float32) / SIZE**0.5)
    return lambda: program(a).block_until_ready(), 2 * SIZE**3 * repeats * devices


def in_transformers(
    config: DecoderConfig, experts: list[decoder.Params], data: EvaluationSet
) -> Callable[[np.ndarray], np.ndarray] | None:
    """The same losses by averaging, loading and running `LlamaForCausalLM`; None where it is not installed."""
    try:
        import torch

        model = peers.llama(config).eval()
    except ImportError:
        return None
    states = [{k: torch.from_numpy(v) for k, v in named_tensors(config, params)} for params in experts]
    tokens = torch.from_numpy(data.tokens).long()

    def losses(weights: np.ndarray) -> np.ndarray:
        rows = []
        for row in weights:
            mean = {k: sum(float(w) * state[k] for w, state in zip(row, states, strict=True)) for k in states[0]}
            model.load_state_dict(mean, strict=False)  # the tied output matrix is not in it
            sums = np.zeros(J)
            with torch.inference_mode():
                for i in range(0, len(tokens), 16):
                    batch = tokens[i : i + 16]
                    logits = model(batch[:, :-1], use_cache=False).logits
                    nll = torch.nn.functional.cross_entropy(
                        logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none"
                    )
                    np.add.at(sums, data.window_domains[i : i + 16], nll.view(len(batch), -1).sum(1).numpy())
            rows.append(sums / data.token_counts)
        return np.stack(rows)

    return losses


PARTS = {
    "merged-1M": lambda: merged("1M"),
    "merged-10M": lambda: merged("10M"),
    "score": scored,
}
