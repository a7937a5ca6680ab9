"""`mde models`: the presets and their sizes."""

from mde.models import config as model_configs


def models(vocab_size: int = 32_000) -> None:
    """Prints the presets: a name says the parameters without embeddings, which no vocabulary changes.

    Args:
      vocab_size: tokens in the vocabulary that the totals are for.
    """
    rows = [["preset", "layers", "width", "heads", "kv", "head", "d_ff", "non-embedding", "total, tied", "untied"]]
    for name in model_configs.PRESETS:
        tied = model_configs.preset(name, vocab_size, tie_embeddings=True)
        untied = model_configs.preset(name, vocab_size, tie_embeddings=False)
        shape = (tied.n_layers, tied.d_model, tied.n_heads, tied.n_kv_heads, tied.head_dim, tied.d_ff)
        sizes = (tied.non_embedding_parameters, tied.parameters, untied.parameters)
        rows.append([name, *map(str, shape), *(f"{size / 1e6:,.2f} M" for size in sizes)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print(f"Parameters with a vocabulary of {vocab_size:,}\n")
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *cells[1:]]))
