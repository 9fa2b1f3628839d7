import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptft.core import tree
from ptft.core.errors import UserError

NAMES = ["backbone/embeddings/word", "backbone/block_0/kernel", "backbone/block_0/bias", "head/bias"]


def shaped(**shapes):
    return {k.replace("__", "/"): jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}


def test_flatten_joins_names_and_unflatten_undoes_it():
    nested = {"backbone": {"block_0": {"kernel": 1, "bias": 2}, "pooler": {"bias": 3}}, "head": {"bias": 4}}
    flat = tree.flatten(nested)
    assert flat == {
        "backbone/block_0/kernel": 1,
        "backbone/block_0/bias": 2,
        "backbone/pooler/bias": 3,
        "head/bias": 4,
    }
    assert tree.unflatten(flat) == nested
    assert tree.flatten({"b": 1, "a": 2}) == {"b": 1, "a": 2} and list(tree.flatten({"b": 1, "a": 2})) == [
        "b",
        "a",
    ]


def test_split_is_undone_by_a_merge():
    flat = {n: i for i, n in enumerate(NAMES)}
    inside, outside = tree.split(flat, NAMES[1:3])
    assert list(inside) == NAMES[1:3] and list(outside) == [NAMES[0], NAMES[3]]
    assert {**inside, **outside} == flat


def test_count_is_the_number_of_scalars():
    assert (
        tree.count({"a": np.zeros((3, 4)), "b": np.zeros(()), "c": jax.ShapeDtypeStruct((2, 0), jnp.float32)})
        == 13
    )


def test_the_first_rule_that_matches_the_whole_name_wins():
    rules = [(r"backbone/.*/bias", "train"), ("backbone/.*", "freeze"), (".*", "train")]
    assert tree.match(NAMES, rules) == dict(zip(NAMES, [1, 1, 0, 2], strict=True))
    for part in ("bias", "backbone/block_0"):  # found in names, at an end or a beginning, but no whole name
        with pytest.raises(UserError, match=rf"\('{part}', 'train'\) matches no parameter"):
            tree.match(NAMES, [(part, "train"), (".*", "freeze")])


def test_a_parameter_that_no_rule_claims_is_an_error():
    with pytest.raises(UserError, match=r"no rule claims head/bias; end the list with"):
        tree.match(NAMES, [("backbone/.*", "freeze")])
    many = [f"backbone/x_{i}" for i in range(9)]
    with pytest.raises(UserError, match=r"no rule claims backbone/x_1, .*backbone/x_5 and 3 more"):
        tree.match(many, [("backbone/x_0", "freeze")])


def test_a_rule_that_matches_nothing_shows_the_nearest_names():
    with pytest.raises(
        UserError,
        match=r"blok_0/kernel', 'train'\) matches no parameter; did you mean 'backbone/block_0/kernel'",
    ):
        tree.match(NAMES, [("backbone/blok_0/kernel", "train"), (".*", "freeze")])


def test_a_rule_below_others_that_claim_all_it_matches_is_an_error():
    with pytest.raises(UserError, match=r"\('head/.\*', 'train'\) never wins: rules above it claim all"):
        tree.match(NAMES, [(".*", "freeze"), ("head/.*", "train")])


def test_all_problems_come_at_once():
    with pytest.raises(UserError) as e:
        tree.match(NAMES, [("nothing", "train"), ("backbone/.*", "freeze"), ("backbone/block_0/.*", "train")])
    # a heading, a dead rule, a shadowed rule, an unclaimed parameter
    assert len(str(e.value).splitlines()) == 4


def test_a_pattern_that_is_no_regular_expression():
    with pytest.raises(UserError, match=r"\('back\(', 'train'\) is not a regular expression"):
        tree.match(NAMES, [("back(", "train")])


def test_diff_compares_both_ways():
    have = shaped(same=(2, 3), clash=(2, 3), extra=(1,))
    want = shaped(same=(2, 3), clash=(3, 2), new=(4,))
    assert tree.diff(have, want) == (["same"], ["new"], ["extra"], [("clash", (2, 3), (3, 2))])
