"""The explorer, run in a browser: its numbers are the evaluator's, and they move with the sliders."""

import re
import shutil
import subprocess

import numpy as np
import pytest

from mde.evaluation import mixture_nll
from mde.evaluation.portable import portable
from mde.reporting import explorer, page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt-get install chromium)")
MOVE = """<script>
const slider = document.querySelectorAll("#explorer input")[0];
slider.value = 0.25;
slider.dispatchEvent(new Event("input"));
</script>"""
PRESS = '<script>document.querySelector("#explorer button[value=uniform]").click();</script>'


@pytest.fixture
def scored(study):
    """A finished study with the text of its explorer, and that text."""
    rng = np.random.default_rng(0)
    log_probs = np.minimum(rng.normal(-3, 1.5, (3000, 2)), 0)
    owners = np.sort(rng.integers(0, 3, 3000))
    study.write_arrays(explorer.TOKENS, portable(log_probs, owners)._asdict())
    return study, log_probs, owners


def opened(html: str, folder) -> tuple[str, str]:
    """The page as it stands once its scripts have run, and what it said on the console."""
    (folder / "page.html").write_text(html)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=5000"]
    done = subprocess.run(
        [CHROMIUM, *flags, f"--user-data-dir={folder / 'profile'}", "--dump-dom", (folder / "page.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def shown(html: str, folder) -> tuple[list[float], list[str], str]:
    """Losses and shares that the page shows, and the console."""
    page, console = opened(html, folder)
    dom = page[page.index('id="explorer"') :]
    rows = re.findall(r'<th scope="row">[^<]*</th><td>([^<]*)</td><td>[^<]*</td><td class="bar"', dom)
    return [float(text) for text in rows], re.findall(r"<output>([^<]*)</output>", dom), console


def titled(html: str, folder) -> tuple[str, str]:
    """The page's title, and the console."""
    page, console = opened(html, folder)
    return re.search(r"<title>([^<]*)</title>", page)[1], console


@in_browser
@pytest.mark.parametrize(
    ("script", "weights", "shares"),
    [
        ("", (0.6, 0.4), ["60.0 %", "40.0 %"]),  # the recommended mixture: code .6
        (MOVE, (0.25, 0.75), ["25.0 %", "75.0 %"]),
        (PRESS, (0.5, 0.5), ["50.0 %", "50.0 %"]),
    ],
)
def test_the_numbers_are_those_of_the_evaluator(scored, tmp_path, script, weights, shares):
    study, log_probs, owners = scored
    html = page.html(study).replace("</body>", f"{script}</body>")
    losses, found, console = shown(html, tmp_path)
    exact = mixture_nll(log_probs, owners, np.array([weights]))[0]
    # What is shown has four digits.
    np.testing.assert_allclose(losses, [*exact, exact.mean()], atol=6e-5)
    assert found == shares
    assert console == ""


def test_the_page_holds_a_slider_an_expert_and_a_button_a_mixture(scored):
    study, *_ = scored
    html = page.html(study)
    assert html.count('type="range"') == 2
    assert re.findall(r'<button type="button" value="([^"]*)"', html) == [
        "uniform",
        "recommended",
        "proportional",
        "best observed",
    ]
    data = explorer.contents(study)
    assert data["reference"] == "recommended"
    assert data["objective"] == pytest.approx([1 / 3] * 3)


CHOOSE = """<script>
const choice = document.querySelector(".choice select");
choice.selectedIndex = 1;
choice.dispatchEvent(new Event("change"));
document.title = Array.from(choice.closest("figure").querySelector(".chart")._fullData[1].x).join();
</script>"""


@in_browser
def test_another_choice_draws_another_chart(scored, tmp_path):
    """Of the evaluators' chart: merged losses are twice those of mde[0], and so are their distances to the mean."""
    study, *_ = scored
    html = page.html(study).replace("</body>", f"{CHOOSE}</body>")
    title, console = titled(html, tmp_path)
    shares = np.arange(20) / 20
    np.testing.assert_allclose([float(x) for x in title.split(",")], 2 * (shares.mean() - shares), atol=1e-9)
    assert console == ""
