"""`{flags} COMMAND`: the table of a command's flags, out of its signature and docstring."""

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

from mde.arguments import MISSING
from mde.commands import pipeline


class Flags(Directive):
    """A row a flag: its name, its default and what it means."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The table as document nodes."""
        command = self.arguments[0]
        rows = []
        for name, argument in pipeline.parameters(command).items():
            required = argument.default is MISSING
            default = nodes.emphasis(text="required") if required else nodes.literal(text=repr(argument.default))
            rows.append([[nodes.literal(text=f"--{name}")], [default], _text(argument.text)])
        return [_table(["flag", "default", "what it is"], rows, [22, 18, 60])]


def _text(described: str) -> list[nodes.Node]:
    """Prose with code in backticks."""
    parts = enumerate(described.split("`"))
    return [nodes.literal(text=part) if i % 2 else nodes.Text(part) for i, part in parts]


def _table(head: list[str], rows: list[list[list[nodes.Node]]], widths: list[int]) -> nodes.table:
    group = nodes.tgroup(cols=len(head))
    group += [nodes.colspec(colwidth=width) for width in widths]
    group += nodes.thead("", _row([[nodes.Text(text)] for text in head]))
    group += nodes.tbody("", *(_row(row) for row in rows))
    return nodes.table("", group)


def _row(cells: list[list[nodes.Node]]) -> nodes.row:
    return nodes.row("", *(nodes.entry("", nodes.paragraph("", "", *cell)) for cell in cells))


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the directive."""
    app.add_directive("flags", Flags)
    return {"parallel_read_safe": True}
