"""The report: a study as one HTML page that needs no network."""

import html as markup
import string
from collections.abc import Callable, Mapping
from importlib import resources
from typing import NamedTuple

from plotly.offline import get_plotlyjs

from mde.reporting import final, findings, reweighting, sections, surface
from mde.study import Study


class Section(NamedTuple):
    """A section of the page.

    Attributes:
      title: its heading.
      needs: the file of the study that it shows.
      stage: what makes that file.
      missing: what to say until it is there; without it the section is shown only when it is.
      body: the study as HTML.
    """

    title: str
    needs: str
    stage: str
    missing: str
    body: Callable[[Study], list[str]]


def html(study: Study) -> str:
    """The page; it depends on nothing but the study and the installed versions."""
    shown = [section for section in SECTIONS if _is_shown(study, section)]
    return document(f"Mixture study: {study.root.name}", {s.title: _body(study, s) for s in shown})


def document(title: str, sections: Mapping[str, str]) -> str:
    """A page of these sections: by title, what each holds, as HTML."""
    contents = "".join(f'<li><a href="#{_anchor(name)}">{name}</a></li>' for name in sections)
    return string.Template(_file("page.html")).substitute(
        title=markup.escape(title),
        style=_file("page.css"),
        contents=f"<ul>{contents}</ul>",
        sections="\n".join(_section(name, body) for name, body in sections.items()),
        plotly=get_plotlyjs(),
        script=_file("page.js"),
    )


SECTIONS = (
    Section("Summary", "optimum.json", "optimize", "No mixture is recommended yet", sections.summary),
    Section("How far to trust it", "fit/choice.json", "fit", "No regressor is fitted yet", sections.trust),
    Section("Experts and evaluators", "losses.csv", "score", "Nothing is scored yet", sections.experts),
    Section("Trade-offs", surface.DATA, "optimize", "", surface.body),
    Section("End tasks", "accuracies.csv", "score", "", sections.end_tasks),
    Section(
        "Validation", final.VALIDATED, "validate", "The recommended mixture is not trained yet", final.validation_body
    ),
    Section("The final models", final.FOLDER, "final", "", final.body),
    Section("Along the budget", "scale.json", "scale", "", sections.along_the_budget),
    Section("Online re-weighting", reweighting.WEIGHTS, "reweight", "", sections.online_reweighting),
    Section("Parts of the corpus", "ablation/cost.csv", "ablate", "", sections.ablations),
    Section("Training curves", "mixtures.csv", "train", "Nothing is trained yet", sections.curves),
    Section("Provenance", "study.json", "prepare", "The study holds no text yet", sections.provenance),
)


def _is_shown(study: Study, section: Section) -> bool:
    if not section.missing:
        return findings.has(study, section.needs)
    return section.stage in (*study.stages, "prepare")


def _body(study: Study, section: Section) -> str:
    if findings.has(study, section.needs):
        return "\n".join(section.body(study))
    command = markup.escape(f"mde {section.stage} --study={study.root.name}")
    return f'<p class="missing">{section.missing}: run <code>{command}</code>.</p>'


def _section(title: str, body: str) -> str:
    anchor = _anchor(title)
    return f'<section aria-labelledby="{anchor}">\n<h2 id="{anchor}">{title}</h2>\n{body}\n</section>'


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _file(name: str) -> str:
    return resources.files("mde.reporting").joinpath(name).read_text(encoding="utf-8")
