"""What became of the documents, by domain and reason."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from mde.domains.corpora import SPLITS, Corpus
from mde.domains.documents import OTHER_DOMAIN, TOO_SHORT
from mde.domains.reading import REASONS

EXACT, NEAR, HELD_OUT, OVERLAP = "exact_duplicate", "near_duplicate", "held_out", "overlap"
# Why documents are dropped, in the order in which it is asked.
DROPPED = (*REASONS, OTHER_DOMAIN, TOO_SHORT, EXACT, NEAR, HELD_OUT, OVERLAP)
_TOLD = 5  # problems that are printed


@dataclasses.dataclass
class Tally:
    """How many documents and bytes of each domain were dropped, by reason."""

    documents: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)
    bytes: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)

    def add(self, domain: str, reason: str, documents: int, size: int) -> None:
        """Counts documents of `size` bytes together."""
        self.documents[domain, reason] += documents
        self.bytes[domain, reason] += size


def table(stores: Mapping[str, Any], tally: Tally, found: Sequence[Corpus], tasks: Sequence[str] = ()) -> pd.DataFrame:
    """By domain: documents and bytes that were read, what became of them, and the tokens that are stored.

    What cannot be told apart by domain is in the row of its corpus. The documents of an end task are right answers.
    """
    rows = {}
    parts = [(corpus.name, corpus.names) for corpus in found] + [(name, (name,)) for name in tasks]
    for whole, names in parts:
        for name in dict.fromkeys((*names, whole)):
            row: dict[str, int] = {"documents": 0, "bytes": 0}
            for split in SPLITS:
                store = stores.get(f"{name}/{split}", {})
                row |= {f"{split}_{what}": store.get(what, 0) for what in ("documents", "bytes", "tokens")}
            for reason in DROPPED:
                row |= {
                    f"{reason}_documents": tally.documents[name, reason],
                    f"{reason}_bytes": tally.bytes[name, reason],
                }
            for what in ("documents", "bytes"):
                row[what] = sum(value for key, value in row.items() if key.endswith(f"_{what}"))
            if name in names or row["documents"]:
                rows[name] = row
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index.name = "domain"
    return table


def printed(table: pd.DataFrame, problems: Sequence[Sequence[Any]], tally: Tally, where: Any) -> str:
    """The table without the reasons that nothing was dropped for, and the first problems of those in the file."""
    shown = pd.DataFrame({"documents": table["documents"], "MB": table["bytes"] / 1e6})
    for split in SPLITS:
        shown[f"{split} tokens"] = table[f"{split}_tokens"]
    for reason in DROPPED:
        if table[f"{reason}_documents"].any():
            shown[reason.replace("_", " ")] = table[f"{reason}_documents"]
    lines = [shown.to_string(formatters=[("{:,.1f}" if column == "MB" else "{:,}").format for column in shown])]
    total = sum(count for (_, reason), count in tally.documents.items() if reason in REASONS)
    if total:
        lines.append(f"\n{total:,} places gave no document ({where}):")
    for path, line, reason, detail in problems[:_TOLD]:
        lines.append(f"  {path}, line {line}: {reason.replace('_', ' ')}: {detail}")
    return "\n".join(lines)
