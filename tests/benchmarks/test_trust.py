"""The simulated swarms are what they say, and the benchmark over them runs."""

import numpy as np
import pytest

from benchmarks import swarms, trust, trust_tables
from mde.errors import UserError

SMALL = [name for name in swarms.SWARMS if name != "wide" and not name.endswith("x512")]


@pytest.mark.parametrize("name", SMALL)
def test_a_swarm_has_a_truth_everywhere_and_losses_around_it(name):
    swarm = swarms.SWARMS[name](seed=1)
    k, j = swarm.mixtures.shape[1], swarm.losses.shape[1]
    everywhere = np.vstack([np.eye(k), np.full((1, k), 1 / k), swarm.mixtures, swarm.draw(100, 0)])
    truth = swarm.truth(everywhere)
    low, high = (0.02, 0.98) if name == "accuracies" else (2, 6)
    assert truth.shape == (len(everywhere), j)
    assert low <= truth.min() <= truth.max() <= high
    np.testing.assert_allclose(everywhere.sum(axis=1), 1)
    np.testing.assert_array_equal(swarm.losses, swarms.SWARMS[name](seed=1).losses)
    assert np.abs(swarm.losses - swarm.truth(swarm.mixtures)).mean() > 0
    assert not np.allclose(swarm.noise(everywhere, 0), swarm.noise(everywhere, 1))
    assert not np.allclose(swarm.draw(5, 0), swarm.draw(5, 1))


def test_the_large_swarms_have_their_sizes():
    wide = swarms.wide(seed=0)
    assert wide.mixtures.shape == (512, 64)
    assert wide.losses.shape == (512, 110)
    assert swarms.SWARMS["law-64x512"](seed=0).mixtures.shape == (512, 64)


def test_sparse_weights_are_tenths_and_mostly_zero():
    swarm = swarms.sparse(seed=0)
    assert swarm.mixtures.shape == (127, 24)
    np.testing.assert_allclose(10 * swarm.mixtures, np.round(10 * swarm.mixtures), atol=1e-12)
    assert np.mean(swarm.draw(2000, 0) == 0) == pytest.approx(0.86, abs=0.005)
    deviation = swarm.noise(np.repeat(swarm.mixtures[:1], 500, axis=0), 0).std(axis=0)
    assert deviation.max() > 30 * deviation.min()  # 60 times, over 110 targets


def test_a_domain_never_trained_on_and_a_virtual_domain():
    mixtures = swarms.virtual(seed=0).draw(2000, 0)
    assert (mixtures[:, 0] == 0).all()
    assert mixtures[:, -1].min() >= 0.05
    assert 0.98 < mixtures[:, -1].max() <= 0.995 + 1e-12


def test_noise_is_25_times_larger_on_one_domain_alone():
    swarm = swarms.heteroscedastic(5, 24, seed=0)
    corner, middle = (np.repeat(point[None], 4000, axis=0) for point in (np.eye(5)[2], np.full(5, 0.2)))
    # 24,000 draws of each: a relative standard error of .6%.
    assert swarm.noise(corner, 0).std() / swarm.noise(middle, 1).std() == pytest.approx(25, rel=0.03)
    assert np.mean(swarm.draw(2000, 0).max(axis=1) > 0.9) > 0.1


def test_pure_noise_replicates_heavy_tails_and_weak_responses():
    assert np.ptp(swarms.pure_noise(seed=0).truth(np.eye(5)), axis=0).max() == 0
    repeated = swarms.replicates(seed=0)
    assert len(repeated.mixtures) == 40
    assert len(np.unique(repeated.mixtures, axis=0)) == 10
    assert (repeated.losses[0] != repeated.losses[1]).all()
    heavy = swarms.SWARMS["heavy-tailed"](seed=0)
    noise = np.abs(heavy.noise(np.repeat(heavy.mixtures, 50, axis=0), 0))
    assert np.quantile(noise, 0.999) > 10 * np.median(noise)  # 27 for two degrees of freedom, 4.9 for normal noise
    weak = swarms.accuracies(seed=0)
    response = weak.truth(weak.mixtures).std(axis=0)
    assert np.median(response) < np.median(weak.noise(weak.mixtures, 0).std(axis=0)) < response.max()


def test_a_diverged_run_and_fewer_targets():
    swarm = swarms.law(5, 24, seed=0)
    changed = swarms.diverged(swarm, 5.0, 3, 1).losses - swarm.losses
    assert changed[3, 1] == pytest.approx(5)
    assert np.count_nonzero(changed) == 1
    assert np.count_nonzero(swarms.diverged(swarm, 5.0, 3).losses - swarm.losses) == 6
    few = swarms.thinned(swarm, 2)
    np.testing.assert_array_equal(few.losses, swarm.losses[:, [0, 5]])
    np.testing.assert_array_equal(few.runs(few.mixtures, 1), swarm.runs(swarm.mixtures, 1)[:, [0, 5]])


def test_the_benchmark_runs_on_a_tiny_swarm_and_writes_a_page(capsys, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{trust.MARK}\nold\n{trust.MARK}\nafter\n")
    one = ["--swarm", "power-2x8", "--targets", "2", "--jobs", "1", "--splits", "1"]
    trust.main(["--quick", *one, "--page", str(page)])
    before, tables, after = page.read_text().split(trust.MARK)
    assert (before, after) == ("before\n", "\nafter\n")
    assert tables.strip() in capsys.readouterr().out
    lines = [line for line in tables.splitlines() if line.startswith("| ") and "---" not in line]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    tables = [dict(zip(header, row, strict=True)) for header, row in zip(rows[::2], rows[1::2], strict=True)]
    error, coverage, regret, choice, claims = tables
    assert float(error["mean"]) == 1
    assert float(error["process"]) < 0.5  # 8 runs of two domains say nearly everything
    assert 0 <= float(coverage["auto: new runs"]) <= 1
    assert float(regret["best run"]) >= 0
    assert choice["fits"] == "1"
    assert claims["fits"] == "4"
    assert int(claims["of these no real gain"]) <= int(claims["called distinguishable"]) <= 4


def test_a_swarm_that_is_not_known_and_a_page_without_marks(tmp_path):
    with pytest.raises(UserError, match="law-5x24"):
        trust.main(["--swarm", "law-5x25"])
    (tmp_path / "page.md").write_text("no marks")
    with pytest.raises(UserError, match=r"page\.md: expected two lines"):
        trust.main(["--page", str(tmp_path / "page.md")])


@pytest.mark.parametrize(
    ("value", "shown"), [(np.nan, "–"), (np.inf, "not finite"), (0.01234, "0.0123"), (345.6, "346"), (1e21, "1.0e+21")]
)
def test_numbers(value, shown):
    assert trust_tables.number(value) == shown
