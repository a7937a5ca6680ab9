"""`merged_nll` beside what one would write instead: python -m benchmarks.merged

Models of 1M and 10M parameters, seven experts. The share of the peak is matmul FLOPs (of averaging and of the forward
passes, attention counted in full) a second over those of large float32 matrix products on all cores, in the same
rounds. The contender averages state dictionaries, loads and evaluates one model after another in PyTorch's
`transformers`, if that is installed. It is given fewer candidates, and its time is scaled; how far the two differ in
their losses is printed.
"""

import argparse
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
from benchmarks.timing import interleaved
from mde.evaluation.merged import MergedLosses
from mde.evaluation.scoring import EvaluationSet
from mde.models import decoder
from mde.models.config import DecoderConfig
from mde.models.huggingface import named_tensors

K, J = 7, 7
CONFIGS = {  # architecture, tokens a window
    "1M": (DecoderConfig(2048, d_model=128, n_layers=4, n_heads=4, n_kv_heads=4, d_ff=352), 128),
    "10M": (DecoderConfig(4096, d_model=320, n_layers=7, n_heads=5, n_kv_heads=5, d_ff=864), 256),
}
SIZE = 2048  # of the matrices whose product is the peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=64)
    parser.add_argument("--few", type=int, default=4, help="candidates of the contender")
    parser.add_argument("--tokens", type=int, default=3584)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=list(CONFIGS), default=list(CONFIGS))
    args = parser.parse_args()
    print(f"K = {K} experts, {args.candidates} candidates, {args.tokens:,} tokens; medians of {args.rounds} rounds")
    print(f"{'':42s} {'seconds':>8s} {'GFLOP/s':>8s} {'of peak':>8s}")
    for name in args.models:
        compare(name, args)


def compare(name: str, args: argparse.Namespace) -> None:
    config, seq_len = CONFIGS[name]
    rng = np.random.default_rng(0)
    experts = [jax.tree.map(np.asarray, decoder.init(config, k)) for k in range(K)]
    data = text(rng, config, seq_len, args.tokens)
    weights = rng.dirichlet(np.ones(K), args.candidates)
    losses = MergedLosses(config, experts, data)
    few = weights[: args.few]
    peak, peak_flops = matmul()
    contenders: dict[str, Callable[[], object]] = {"peak": peak, "ours": lambda: losses(weights)}
    torch_losses = in_transformers(config, experts, data)
    if torch_losses is not None:
        contenders["torch"] = lambda: torch_losses(few)
        print(f"{name}: the two differ by {np.abs(losses(few) - torch_losses(few)).max():.1e} nats per token at most")
    seconds = interleaved(contenders, args.rounds)
    flops = args.candidates * (2 * K * parameters(config) + data.tokens[:, 1:].size * token_flops(config, seq_len))
    rate, peak_rate = flops / seconds["ours"], peak_flops / seconds["peak"]
    print(f"{name + ' merged_nll':42s} {seconds['ours']:8.2f} {rate / 1e9:8.0f} {rate / peak_rate:8.2f}")
    if torch_losses is None:
        print("PyTorch is not measured: pip install torch transformers")
        return
    taken = seconds["torch"] * args.candidates / args.few
    print(
        f"{name + ' PyTorch, a candidate at a time':42s} {taken:8.2f} {flops / taken / 1e9:8.0f} "
        f"{flops / taken / peak_rate:8.2f}   {taken / seconds['ours']:.1f} x the time"
    )


def text(rng: np.random.Generator, config: DecoderConfig, seq_len: int, tokens: int) -> EvaluationSet:
    """Random tokens, a document a window, so that plain causal attention is right for the contender."""
    windows = tokens // (J * seq_len) * J
    return EvaluationSet(
        tuple(f"domain-{j}" for j in range(J)),
        rng.integers(1, config.vocab_size, (windows, seq_len + 1)).astype(np.int32),
        np.ones((windows, seq_len + 1), np.int32),
        np.repeat(np.arange(J), windows // J),
        np.ones(J),
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


if __name__ == "__main__":
    main()
