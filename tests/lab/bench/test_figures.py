"""Figures: their samples, their statistics and their verdicts."""

from __future__ import annotations

from dataclasses import replace

from lab.bench.figures import Aim, Figure, Run, interleaved, missed, ratios


def test_runs_alternate_and_the_warm_up_does_not_count() -> None:
    order: list[str] = []

    def run(name: str) -> Run:
        def count() -> float:
            order.append(name)
            return float(len(order))

        return count

    results = interleaved({"a": run("a"), "b": run("b")}, 4, warmup=1)
    assert "".join(order) == "baabbaabba"
    # What a pair holds comes from one round.
    assert results == {"a": [3, 6, 7, 10], "b": [4, 5, 8, 9]}


def figure(samples: list[float], aim: Aim | None, failure: str = "") -> Figure:
    return Figure("name", "title", "limit", aim, samples=samples, failure=failure)


def test_an_aim_is_missed_by_the_median_and_by_nothing_else() -> None:
    most, least = Aim(1.01), Aim(0.9, at_least=True)
    assert figure([1.0, 1.01, 9.0], most).verdict == "met"
    assert figure([1.0, 1.02, 1.02], most).verdict == "missed"
    assert figure([0.1, 0.9, 0.9], least).verdict == "met"
    assert figure([0.8, 0.89, 2.0], least).verdict == "missed"
    assert figure([1.0], most, failure="imports torch").verdict == "missed"
    assert figure([], most).verdict == "not measured"
    assert figure([5.0], None).verdict == "shown"
    every = [figure(samples, aim) for samples in ([], [1.0], [2.0]) for aim in (most, None)]
    assert missed(every) == [every[4]]
    assert ratios([2.0, 3.0], [1.0, 6.0]) == [2.0, 0.5]


def test_a_figure_within_the_noise_of_its_control_is_neither_met_nor_missed() -> None:
    def verdict(median: float, control: list[float], aim: Aim) -> str:
        return replace(figure([median], aim), control=control).verdict

    noisy, quiet = [0.97, 1.0, 1.01], [0.999, 1.0, 1.001]
    for aim, good, bad in ((Aim(1.01), 0.5, 1.012), (Aim(0.99, at_least=True), 2.0, 0.988)):
        assert verdict(bad, noisy, aim) == verdict(1.0, noisy, aim) == "within the noise"
        assert verdict(bad, quiet, aim) == verdict(bad, [], aim) == "missed"
        assert verdict(1.0, quiet, aim) == verdict(good, noisy, aim) == "met"
    assert verdict(1.2, noisy, Aim(1.01)) == "missed"
    told = replace(figure([1.012], Aim(1.01)), control=noisy)
    assert missed([told]) == [] and told.as_json()["verdict"] == "within the noise"
