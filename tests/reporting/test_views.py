"""A finished study as a notebook shows it."""

import pytest

import mde

FIGURES = ("mixture", "errors", "predictions", "experts", "validation", "training")


@pytest.fixture
def finished(study):
    return mde.Study(study.root)


@pytest.mark.parametrize("name", FIGURES)
def test_figures_stand_on_white_paper(finished, name):
    figure = getattr(finished, f"plot_{name}")()
    assert len(figure.data) >= 1
    assert (figure.layout.paper_bgcolor, figure.layout.plot_bgcolor) == ("white", "white")


def test_the_mixture_is_shown_beside_its_baselines_only(finished):
    names = [trace.name for trace in finished.plot_mixture().data]
    assert names == ["recommended", "interval", "uniform", "proportional", "best observed"]


def test_the_study_lists_its_stages_and_their_time(finished):
    html = finished._repr_html_()
    assert '<th scope="row">train</th><td>20 s</td>' in html
    assert html.count("not yet") == 3  # score, evaluate and report, which the hand-made study never ran
    assert "Regret of the recommended mixture: 0.0000" in str(finished.validation())
