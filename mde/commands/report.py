"""`mde report`: the study as one page, and its tables on the terminal."""

from mde import buckets
from mde.errors import UserError
from mde.reporting import accuracy, final, findings, page, tables
from mde.study import Study


def report(study: Study) -> None:
    """Prints the tables of whatever stages are done, and writes report.html.

    Raises:
      UserError: there is nothing to show, or the study cannot be written to.
    """
    if not any(findings.has(study, section.needs) for section in page.SECTIONS):
        raise UserError(f"{study} holds nothing to report; run `mde prepare --study={study}` first")
    buckets.check_writable(study.root)
    print(text(study))
    study.write_text("report.html", page.html(study))
    print(f"\nsee {study.root / 'report.html'}")


def text(study: Study) -> str:
    """The tables of all stages that are done, for a terminal of 100 columns."""
    found: list[object] = []
    if findings.has(study, "fit/choice.json"):
        found.append(tables.regressors(study))
    if findings.has(study, "fit/accuracy.csv"):
        found += [accuracy.measured(study), accuracy.predicted(study)]
    if findings.has(study, "optimum.json"):
        found.append(tables.recommendation(study))
    if part := final.validation(study):
        found.append(final.text(part))
    if not findings.stages(study).empty:
        found.append(tables.times(study))
    return "\n\n".join(map(str, found))
