import pytest

from waterfill.reproduce.claims import GRID, compare, curve, ranking, smallest_within


def row(ratio, accuracy, loss, **more):
    return {"paper_ratio": ratio, "amount": ratio, "accuracy": accuracy, "cross_entropy": loss, **more}


REFERENCE = [row(0.1, 0.5, 2.0), row(0.2, 0.7, 0.5), row(0.4, 0.9, 0.2)]


def test_accuracies_are_interpolated_linearly_and_losses_by_their_logarithms():
    between = [row(0.15, 0.6, 1.0)]  # the mean of .5 and .7, the geometric mean of 2 and .5
    for quality in ("accuracy", "cross_entropy"):
        found = compare(between, REFERENCE, quality, "paper_ratio")
        assert (found.better, found.equal, found.worse) == (0, 1, 0)
        assert found.median_gain == pytest.approx(0, abs=1e-12)
    better = compare([row(0.15, 0.65, 0.9)], REFERENCE, "accuracy", "paper_ratio")
    assert better.better == 1 and better.median_gain == pytest.approx(0.05)
    assert compare([row(0.15, 0.6, 0.9)], REFERENCE, "cross_entropy", "paper_ratio").median_gain == pytest.approx(0.1)


def test_exceptions_are_counted_and_named():
    found = compare(
        [row(0.1, 0.6, 3.0), row(0.2, 0.6, 0.4), row(0.4, 0.9, 0.3)], REFERENCE, "cross_entropy", "paper_ratio"
    )
    assert (found.better, found.worse, found.count) == (1, 2, 3) and found.exceptions == (0.1, 0.4)


def test_ratios_outside_the_reference_do_not_count():
    assert compare([row(0.05, 0.1, 9.0), row(0.5, 1.0, 0.1)], REFERENCE, "accuracy", "paper_ratio").count == 0


def test_a_reference_need_not_be_sorted():
    found = compare([row(0.3, 0.81, 0.3)], REFERENCE[::-1], "accuracy", "paper_ratio")
    assert found.better == 1 and found.median_gain == pytest.approx(0.01)


def test_curves_are_chosen_and_sorted():
    points = [
        row(0.2, 0, 0, task="prune", objective="kl", variant="paper"),
        row(0.1, 0, 0, task="prune", objective="kl", variant="paper"),
        row(0.3, 0, 0, task="prune", objective="kl", variant="one level"),
        row(0.4, 0, 0, task="quantize", objective="kl", variant="paper"),
        row(0.5, 0, 0, task="prune", objective="baseline", variant="paper"),
    ]
    assert [each["amount"] for each in curve({"points": points}, "prune", "kl")] == [0.1, 0.2]
    assert [each["amount"] for each in curve({"points": points}, "prune", "kl", "one level")] == [0.3]


def test_the_smallest_file_within_a_loss():
    rows = [row(0.1, 0.89, 0, size_bytes=10), row(0.2, 0.90, 0, size_bytes=20), row(0.3, 0.91, 0, size_bytes=30)]
    results = {"original": {"accuracy": 0.91}}
    assert smallest_within(results, rows, 1.0)["size_bytes"] == 20
    assert smallest_within(results, rows, 2.0)["size_bytes"] == 10
    assert smallest_within(results, rows, 0.5)["size_bytes"] == 30
    assert smallest_within({"original": {"accuracy": 0.99}}, rows, 1.0) is None


def test_curves_are_ranked_where_all_have_points():
    curves = {
        "reference": [row(0.1, 0.5, 2.0), row(0.5, 0.5, 2.0)],
        "better": [row(0.5, 0.6, 1.0), row(0.2, 0.6, 1.0)],
        "worse": [row(0.0, 0.1, 4.0), row(1.0, 0.1, 4.0)],
    }
    by_loss = ranking(curves, "cross_entropy", "paper_ratio")
    assert [won for won, _ in by_loss.values()] == [0, GRID, 0]
    assert [mean for _, mean in by_loss.values()] == pytest.approx([0, -0.5, 1])
    by_hits = ranking(curves, "accuracy", "paper_ratio")
    assert [won for won, _ in by_hits.values()] == [0, GRID, 0]
    assert [mean for _, mean in by_hits.values()] == pytest.approx([0, 0.1, -0.4])
    crossing = {"falls": [row(0, 1.0, 1), row(1, 0.0, 1)], "rises": [row(0, 0.0, 1), row(1, 1.0, 1)]}
    falls, rises = ranking(crossing, "accuracy", "paper_ratio").values()
    assert falls[0] + rises[0] == GRID and abs(falls[0] - rises[0]) <= 1 and rises[1] == pytest.approx(0, abs=1e-9)
