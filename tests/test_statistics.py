import numpy as np
import pytest

from offon.benchmark import statistics as st


def column(*scores):
    return np.array(scores, dtype=float)[:, None]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        (range(8), 3.5),  # 2..5
        ((1, 2, 3, 4, 100), 3.0),  # one cut at each end, not one and a quarter
        ((0, 1, 2, 3, 10, 20), 4.0),  # 1, 2, 3, 10
        ((5, 0, 1, 2, 3, 4, 600), 3.0),  # 1..5
        (range(10), 4.5),  # 2..7
        ((1, 2, 6), 3.0),  # too few to cut
        ((7,), 7.0),
    ],
)
def test_iqm_by_hand(scores, expected):
    assert st.iqm(column(*scores)) == pytest.approx(expected)


def test_iqm_pools_runs_and_tasks():
    scores = np.array([[0.0, 10.0], [1.0, 11.0], [2.0, 12.0], [3.0, 100.0]])  # of 8: cut 0, 1 and 12, 100
    assert st.iqm(scores) == pytest.approx((2 + 3 + 10 + 11) / 4)


def test_mean_median_gap_and_std_by_hand():
    one = column(50, 90, 130)
    assert st.mean(one) == 90
    assert st.median(one) == 90
    assert st.optimality_gap(one) == pytest.approx((50 + 10 + 0) / 3)
    assert st.std(one) == pytest.approx(40.0)  # sqrt((40^2 + 0 + 40^2) / 2)
    several = np.array([[0.0, 10.0, 50.0], [2.0, 20.0, 70.0]])
    assert st.median(several) == 15  # task means 1, 15, 60
    assert st.std(several) == pytest.approx(np.sqrt(2) * (92 / 3 - 20) / 2)  # run means 20 and 92 / 3


def test_optimality_gap_gives_no_credit_above_the_target():
    assert st.optimality_gap(column(100, 500)) == 0
    assert st.optimality_gap(column(0, 500)) == 50


def test_probability_of_improvement_by_hand():
    assert st.probability_of_improvement(column(3, 4), column(1, 3)) == pytest.approx(3.5 / 4)
    assert st.probability_of_improvement(column(1, 2, 3), column(2, 2)) == pytest.approx(0.5)
    x, y = np.array([[1.0, 0.0], [2.0, 0.0]]), np.array([[0.0, 1.0], [0.0, 1.0]])
    assert st.probability_of_improvement(x, y) == pytest.approx(0.5)  # 1 on one task, 0 on the other


def test_probability_of_improvement_and_its_reverse_sum_to_one():
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 4, (6, 3)), rng.integers(0, 4, (5, 3))
    assert st.probability_of_improvement(x, y) + st.probability_of_improvement(y, x) == pytest.approx(1)


def test_performance_profile_by_hand():
    scores = np.array([[10.0, 20.0], [30.0, 40.0]])
    assert st.performance_profile(scores, [0, 10, 25, 40]).tolist() == [1.0, 0.75, 0.5, 0.0]  # strictly above


def test_scores_are_normalized_before_the_spread():
    returns = np.array([30.6, 849.51, 440.055])
    assert st.normalized_score(returns, 30.6, 849.51).tolist() == pytest.approx([0, 100, 50])
    with pytest.raises(ValueError, match="score_max > score_min"):
        st.normalized_score(returns, 5.0, 5.0)


POINTS = [st.mean, st.median, st.iqm, st.optimality_gap]


@pytest.mark.parametrize("statistic", [*POINTS, st.std])
def test_order_of_seeds_and_tasks_changes_no_point(statistic):
    rng = np.random.default_rng(0)
    scores = rng.normal(50, 20, (9, 4))
    assert statistic(scores[rng.permutation(9)]) == pytest.approx(statistic(scores))
    assert statistic(scores[:, rng.permutation(4)]) == pytest.approx(statistic(scores))


@pytest.mark.parametrize("statistic", [st.mean, st.median, st.iqm])
def test_shifting_scores_shifts_point_and_interval(statistic):
    scores = np.random.default_rng(0).normal(0, 5, (10, 3))
    plain, shifted = st.estimate(scores, statistic, seed=4), st.estimate(scores + 7, statistic, seed=4)
    assert np.allclose(np.array(shifted) - np.array(plain), 7)


@pytest.mark.parametrize("statistic", POINTS)
def test_a_stack_of_resamples_is_evaluated_like_each_of_them(statistic):
    stack = np.random.default_rng(0).normal(50, 20, (5, 6, 3))
    assert statistic(stack) == pytest.approx([float(statistic(scores)) for scores in stack])


def test_interval_is_deterministic_given_the_seed():
    scores = np.random.default_rng(0).normal(size=(10, 2))
    assert st.estimate(scores, st.iqm, seed=1) == st.estimate(scores, st.iqm, seed=1)
    assert st.estimate(scores, st.iqm, seed=1) != st.estimate(scores, st.iqm, seed=2)


def test_interval_of_two_runs_by_hand():
    # resamples of {0, 1} have mean 0, 1/2, 1 with chance 1/4, 1/2, 1/4: the outer 2.5 % are 0 and 1
    found = st.estimate(column(0, 1), st.mean, seed=0)
    assert (found.point, found.low, found.high) == (0.5, 0.0, 1.0)


def test_interval_resamples_within_tasks():
    # far between tasks, equal within: no resampling of runs can move the mean, mixing tasks would
    found = st.estimate(np.array([[0.0, 100.0]] * 5), st.mean, seed=0)
    assert (found.low, found.high) == (50.0, 50.0)


def test_interval_contains_the_point_of_symmetric_scores():
    found = st.estimate(column(*range(-10, 11)), st.mean, seed=0)
    assert found.low < found.point == 0 < found.high
    assert found.low == pytest.approx(-found.high, abs=0.5)
    expected = 1.96 * np.std(range(-10, 11)) / np.sqrt(21)  # normal approximation of the bootstrap of a mean
    assert found.high == pytest.approx(expected, rel=0.1)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        found = st.estimate(rng.normal(size=(20, 1)), st.mean, seed=trial, resamples=300)
        hits += found.low <= 0 <= found.high
    assert 0.88 <= hits / 200 <= 0.99  # the percentile bootstrap is slightly narrow for 20 runs


def test_one_run_has_a_point_and_no_interval():
    found = st.estimate(column(42), st.iqm, seed=0)
    assert found.point == 42
    assert np.isnan([found.low, found.high, st.std(column(42))]).all()
    assert np.isnan(st.improvement_estimate(column(1), column(0, 2), seed=0).low)
    assert np.isnan(st.curve_estimate(np.ones((1, 3)), seed=0).low).all()


def test_equal_runs_have_an_interval_of_no_width():
    found = st.estimate(np.full((10, 2), 3.0), st.iqm, seed=0)
    assert (found.point, found.low, found.high) == (3.0, 3.0, 3.0)
    tie = st.improvement_estimate(column(1, 1), column(1, 1), seed=0)
    assert (tie.point, tie.low, tie.high) == (0.5, 0.5, 0.5)


def test_profile_band_has_one_interval_per_threshold():
    scores = np.random.default_rng(0).normal(50, 10, (8, 3))
    taus = np.linspace(20, 80, 13)
    found = st.estimate(scores, lambda draws: st.performance_profile(draws, taus), seed=0)
    assert found.low.shape == found.point.shape == (13,)
    assert (found.low <= found.point).all() and (found.point <= found.high).all()
    assert (np.diff(found.point) <= 0).all()


def test_curve_band_redraws_whole_runs():
    curves = np.array([[0.0, 10.0], [1.0, 11.0], [2.0, 12.0], [3.0, 13.0]])
    found = st.curve_estimate(curves, seed=0)
    assert found.point.tolist() == [1.5, 11.5]  # the middle two of four
    assert found.high[1] - found.high[0] == found.low[1] - found.low[0] == 10  # the same runs at both points


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_refused_not_trimmed(bad):
    with pytest.raises(ValueError, match="finite"):
        st.iqm(column(1, 2, 3, bad))


@pytest.mark.parametrize("shape", [(5,), (0, 2), (3, 0)])
def test_wrong_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"\[runs, tasks\]"):
        st.mean(np.zeros(shape))


def test_improvement_needs_the_same_tasks():
    with pytest.raises(ValueError, match="same tasks"):
        st.probability_of_improvement(np.zeros((3, 2)), np.zeros((3, 1)))
