"""Which of the published shapes a benchmark shows."""

import pytest

from ptft.bench import expectations, setting, stats

LAYERS = 6


def rows(scores, task="sst2", size=1000, lr=1e-4, lrs=None, seeds=5, **changes):
    """Rows of strategies (freeze -> mean accuracy); `lrs`: freeze -> the rate that dev chooses, of three."""
    out = []
    for i, (freeze, mean) in enumerate(scores.items()):
        best = (lrs or {}).get(freeze, lr)
        for rate in (best / 3, best, best * 3) if lrs else (best,):
            for seed in range(seeds):
                accuracy = mean + 0.004 * (seed - 2) + 0.001 * ((seed * 7 + i * 3) % 5 - 2)
                out.append(
                    {
                        "cell": f"{task}{freeze}{seed}",
                        "strategy": freeze,
                        "freeze": freeze,
                        "lr": rate,
                        "seed": seed,
                        "task": task,
                        "model": "",
                        "size": size,
                        "kind": "train",
                        "repeat": False,
                        "metric": "accuracy",
                        "status": "ok",
                        "init_from": "minilm",
                        "dev": {"accuracy": accuracy - (rate != best) * 0.1},
                        "test": {"accuracy": accuracy},
                        "drift": {f"backbone/block_{b}/x": 1.0 for b in range(LAYERS)}
                        if freeze == "full"
                        else {},
                        **changes,
                    }
                )
    return out


def verdict(found, words):
    mine = [f for f in found if words in f.expected]
    assert len(mine) <= 1
    return mine[0].holds if mine else None


GOOD = {
    "head": 0.70,
    "top-1": 0.80,
    "top-2": 0.83,
    "top-3": 0.83,
    "full": 0.83,
    "bitfit": 0.82,
    "gradual": 0.83,
}


@pytest.mark.parametrize(
    ("words", "changes", "size"),
    [
        ("more layers", {"top-2": 0.75}, 1000),
        ("head alone to one layer", {"top-1": 0.71}, 1000),
        ("costs nothing", {"top-2": 0.70}, 1000),
        ("Gradual", {"gradual": 0.70}, 1000),
        (
            "seeds differ by more",
            {"head": 0.83, "bitfit": 0.83, "top-1": 0.831, "gradual": 0.83, "top-2": 0.70},
            100,
        ),
    ],
)
def test_a_shape_holds_or_does_not(words, changes, size):
    good = {**GOOD, **(dict.fromkeys(GOOD, 0.83) if size == 100 else {})}
    assert verdict(expectations.findings(rows(good, size=size)), words) is True
    assert verdict(expectations.findings(rows({**good, **changes}, size=size)), words) is False


@pytest.mark.parametrize(
    ("task", "words", "good", "bad"),
    [("mrpc", "biases alone are no worse", 0.83, 0.7), ("mnli", "biases alone are worse", 0.7, 0.83)],
)
def test_biases_by_task(task, words, good, bad):
    for accuracy, holds in ((good, True), (bad, False)):
        found = expectations.findings(rows({**GOOD, "bitfit": accuracy}, task=task))
        assert verdict(found, words) is holds
        assert (
            verdict(found, "biases alone are worse" if task == "mrpc" else "biases alone are no worse")
            is None
        )


def test_learning_rates_are_those_that_dev_chose():
    found = expectations.findings(rows(GOOD, lrs={**dict.fromkeys(GOOD, 1e-4), "head": 1e-2, "bitfit": 1e-3}))
    assert verdict(found, "ten times the learning rate") is True
    found = expectations.findings(rows(GOOD, lrs={**dict.fromkeys(GOOD, 1e-4), "head": 1e-2, "bitfit": 5e-4}))
    assert verdict(found, "ten times the learning rate") is False
    # nothing was chosen
    assert verdict(expectations.findings(rows(GOOD)), "ten times the learning rate") is None


def test_time_and_forgetting():
    def cost(head_seconds):
        full = rows(
            {"full": 0.8}, seconds_per_step=1.0, flops_per_step=1e9, forgetting={"before": 2.0, "after": 2.5}
        )
        return full + rows(
            {"head": 0.7},
            seconds_per_step=head_seconds,
            flops_per_step=0.3e9,
            forgetting={"before": 2.0, "after": 2.0},
        )

    assert (
        verdict(expectations.findings(cost(0.4)), "no more time") is True
        and verdict(expectations.findings(cost(0.2)), "no more time") is False
    )
    found = expectations.findings(cost(0.4))
    assert verdict(found, "forgets nothing") is True
    broken = [
        {**r, "forgetting": {"before": 2.0, "after": 2.0 + 1e-9 * (r["freeze"] == "head")}} for r in cost(0.4)
    ]
    assert verdict(expectations.findings(broken), "forgets nothing") is False


def test_what_was_not_run_or_failed_says_nothing():
    assert expectations.findings(rows({"full": 0.8})) == []
    one_seed = expectations.findings(rows(GOOD, seeds=1))
    assert [f for f in one_seed if "rate" not in f.expected] == []
    scratch = [{**r, "init_from": ""} for r in rows(GOOD)]
    assert expectations.findings(scratch) == []
    failed = [
        {**r, "status": "failed", "test": None} if r["freeze"] == "gradual" and r["seed"] == 0 else r
        for r in rows(GOOD)
    ]
    assert (
        verdict(expectations.findings(failed), "Gradual") is None
        and verdict(expectations.findings(failed), "more layers") is True
    )


def test_the_table_says_where():
    found = expectations.findings(rows(GOOD, size=200) + rows({**GOOD, "top-2": 0.7}))
    table = {row["expected"]: row for row in expectations.table(found)}
    row = next(row for expected, row in table.items() if "costs nothing" in expected)
    assert row["verdict"] == "holds in 1 of 2, does not hold in 1" and [p["where"] for p in row["parts"]] == [
        "sst2, 200 examples",
        "sst2, 1,000 examples",
    ]
    judged = {f.expected for f in found if f.holds is not None}
    # what these rows do not speak of is no row
    assert set(table) == judged and not any("MNLI" in expected for expected in table)


def test_a_failed_seed_is_no_crash_and_a_task_is_a_word():
    failed = [
        {**r, "status": "failed", "test": None} if r["freeze"] == "head" and r["seed"] == 0 else r
        for r in rows(GOOD, size=100)
    ]
    assert verdict(expectations.findings(failed), "seeds differ by more") is not None
    assert (
        verdict(expectations.findings(rows(GOOD, task="cortex reviews")), "biases alone are no worse") is None
    )


def test_the_more_is_compared_the_more_is_asked():
    """One pair of fifteen that looks broken at 95 % is chance."""
    noisy = [
        {
            **r,
            "test": {
                "accuracy": 0.83
                + (0.004 + 0.002 * r["seed"] if r["freeze"] == "top-1" else 0.003 * (r["seed"] % 2))
            },
        }
        for r in rows(GOOD)
    ]
    one = next(setting.settings(noisy))
    assert (
        stats.apart(one.gain("top-2", "top-1")) and expectations.more_layers_are_no_worse(one)[0] is not False
    )


@pytest.mark.parametrize(("seeds", "holds"), [(5, True), (2, None)])
def test_where_nothing_can_be_told_apart_it_is_open(seeds, holds):
    """Two seeds have intervals of many points: that no strategy is measurably worse says nothing then."""
    found = expectations.findings(rows(GOOD, seeds=seeds))
    for words in ("more layers", "costs nothing", "Gradual"):
        assert verdict(found, words) is holds
    table = {row["expected"]: row["verdict"] for row in expectations.table(found)}
    # what is open is no row
    assert [v for e, v in table.items() if "more layers" in e] == ["holds"] * bool(holds)
    assert (
        verdict(
            expectations.findings(rows({**GOOD, "bitfit": 0.8}, task="mnli", seeds=seeds)),
            "biases alone are worse",
        )
        is holds
    )


def test_no_worse_is_to_a_point_and_about_is_on_both_sides():
    def moved(by):
        return [
            {**r, "test": {"accuracy": 0.8 + (by(r) if r["freeze"] in ("gradual", "top-2") else 0)}}
            for r in rows(GOOD)
        ]

    for sign in (1, -1):
        # measurable, and less than a point
        found = expectations.findings(moved(lambda r, sign=sign: sign * (0.002 + 0.0001 * r["seed"])))
        assert verdict(found, "Gradual") is True
        found = expectations.findings(moved(lambda r, sign=sign: sign * (0.02 + 0.0001 * r["seed"])))
        assert verdict(found, "Gradual") is False
        assert verdict([f for f in found if "costs nothing" in f.expected], "costs nothing") is not (
            sign > 0 or None
        )


def test_what_was_not_compared_holds_nothing():
    """A last link with one seed, however bad, or with seeds that only some of the others have."""
    one = [
        r
        for r in rows({"head": 0.7, "top-1": 0.8, "top-2": 0.82, "full": 0.2})
        if r["freeze"] != "full" or r["seed"] == 0
    ]
    found = next(f for f in expectations.findings(one) if "more layers" in f.expected)
    assert found.holds is True and "≤ full" not in found.why
    assert found.why.endswith("not compared, for a failed run or too few seeds: full")
    assert verdict(expectations.findings([r for r in one if r["freeze"] != "top-2"]), "more layers") is None
    some = [r for r in rows({"head": 0.7, "top-1": 0.8, "full": 0.9}, seeds=8)
            if {"head": r["seed"] < 5, "top-1": True, "full": r["seed"] > 3}[r["freeze"]]]  # fmt: skip
    assert verdict(expectations.findings(some), "more layers") is None


def test_what_does_not_vary_tells_nothing():
    """Strategies that all say the most frequent class have differences of exactly 0 in every seed."""
    same = [{**r, "test": {"accuracy": 0.5}} for r in rows(GOOD, seeds=2)]
    found = expectations.findings(same)
    assert {f.holds for f in found} == {None}, found


def test_few_seeds_leave_open_whether_they_decide():
    few = {**dict.fromkeys(GOOD, 0.83), "head": 0.836}
    assert verdict(expectations.findings(rows(few, size=100, seeds=2)), "seeds differ by more") is None
    assert (
        verdict(expectations.findings(rows({**few, "head": 0.7}, size=100, seeds=5)), "seeds differ by more")
        is False
    )
    wide = [
        {
            **r,
            "test": {
                "accuracy": 0.8
                + 0.05 * (r["seed"] - 2)
                + (r["freeze"] == "head") * (0.075 + 0.03 * (r["seed"] % 2))
            },
        }
        for r in rows(few, size=100, seeds=5)
    ]
    assert verdict(expectations.findings(wide), "seeds differ by more") is None, (
        "measurable, but its interval reaches into their spread"
    )


def test_the_first_step_is_the_largest_only_if_measurably_so():
    rising = {"head": 0.7, "top-1": 0.72, "top-2": 0.719, "top-3": 0.74, "full": 0.74}
    assert verdict(expectations.findings(rows(rising)), "head alone to one layer") is None
    falling = {"head": 0.8, "top-1": 0.79, "top-2": 0.70, "full": 0.7}
    assert verdict(expectations.findings(rows(falling)), "head alone to one layer") is True  # it loses least


@pytest.mark.parametrize(("edge", "centre"), [(5e-3, True), (1e-4, False)])
def test_what_dev_chose_at_the_edge_of_the_rates_leaves_open_what_is_wanted(edge, centre):
    """Head's best may lie beyond: further from full's, or nearer."""
    for best, holds in ((edge, centre), (edge * 3, centre or None), (edge / 3, None if centre else False)):
        found = [r for r in rows({"full": 0.8, "head": 0.8}, lrs={"full": 1e-4, "head": edge})]
        for r in found:
            if r["freeze"] == "head":
                r["dev"] = {"accuracy": 0.9 - abs(r["lr"] - best)}
        assert verdict(expectations.findings(found), "ten times the learning rate") is holds, best


def test_a_rate_that_the_grid_forced_says_nothing():
    # 1/3 to 3 times of each
    found = expectations.findings(rows(GOOD, lrs={**dict.fromkeys(GOOD, 1e-4), "head": 1e-2, "bitfit": 1e-1}))
    assert verdict(found, "ten times the learning rate") is None
    found = expectations.findings(rows(GOOD, lrs={**dict.fromkeys(GOOD, 1e-4), "head": 1e-2, "bitfit": 1e-3}))
    assert "full 0.0001, head 0.01" in next(f.why for f in found if "ten times" in f.expected)
