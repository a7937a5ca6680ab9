"""A table as people read it: in the page, in a notebook, on a terminal."""

import html as markup
import textwrap
from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class Table:
    """A table as it is shown; a notebook shows `html()`, a terminal `str()`.

    Attributes:
      title: what it holds, and its units.
      frame: cells as text; the index labels the rows.
      notes: sentences that belong to it.
      groups: a heading for each row; it is shown where it changes.
      marked: labels of rows that stand out.
      prose: whether cells hold words rather than numbers.
    """

    title: str
    frame: pd.DataFrame
    notes: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    marked: tuple[str, ...] = ()
    prose: bool = False

    def html(self) -> str:
        """The cells and the notes; the title is left to whoever places it."""
        kind = ' class="text"' if self.prose else ""
        head = "".join(f'<th scope="col"{kind}>{markup.escape(str(name))}</th>' for name in self.frame.columns)
        rows = []
        for i, (label, cells) in enumerate(zip(self.frame.index, self.frame.to_numpy(), strict=True)):
            if self.groups and (i == 0 or self.groups[i] != self.groups[i - 1]):
                heading = markup.escape(self.groups[i])
                rows.append(f'<tr><th scope="rowgroup" colspan="{len(cells) + 1}">{heading}</th></tr>')
            body = "".join(f"<td{kind}>{markup.escape(str(cell))}</td>" for cell in cells)
            name = markup.escape(str(label)).replace("+", "+<wbr>")
            marked = ' class="marked"' if label in self.marked else ""
            rows.append(f'<tr{marked}><th scope="row">{name}</th>{body}</tr>')
        notes = "".join(f'<p class="note">{markup.escape(note)}</p>' for note in self.notes)
        return (
            f'<div class="scroll" tabindex="0" role="region" aria-label="{markup.escape(self.title)}"><table>'
            f'<thead><tr><th scope="col">{markup.escape(str(self.frame.index.name))}</th>{head}</tr></thead>'
            f"<tbody>{''.join(rows)}</tbody></table></div>{notes}"
        )

    def _repr_html_(self) -> str:
        return f"<h4>{markup.escape(self.title)}</h4>{self.html()}"

    def __str__(self) -> str:
        """Plain text of 100 columns, as far as the cells allow."""
        labels = [str(self.frame.index.name), *(f"{'  ' if self.groups else ''}{label}" for label in self.frame.index)]
        columns = [labels, *([str(name), *self.frame[name]] for name in self.frame)]
        widths = [max(map(len, cells)) for cells in columns]
        lines: list[str] = []
        for i, (label, *cells) in enumerate(zip(*columns, strict=True)):
            if i and self.groups and (i == 1 or self.groups[i - 1] != self.groups[i - 2]):
                lines.append(self.groups[i - 1])
            numbers = (cell.rjust(width + 2) for cell, width in zip(cells, widths[1:], strict=True))
            lines.append(label.ljust(widths[0]) + "".join(numbers))
        notes = [line for note in self.notes for line in textwrap.wrap(note, 100)]
        return "\n".join([*textwrap.wrap(self.title, 100), "", *lines, *([""] if notes else []), *notes])
