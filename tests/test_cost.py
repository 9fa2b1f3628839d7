import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from ptft.core import mesh, tree
from ptft.train import cost, optim, step
from ptft.train.cost import Cost

FAST = {"xla_backend_optimization_level": 0}


def compiled(f, *shapes):
    return jax.jit(f).lower(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).compile(FAST)


def of_step(model="bert", task="classify", accumulate=1, chosen=None):
    net = tiny.net(model, task, dropout=0.1)
    inside, outside = tree.split(net.shapes(), chosen or net.shapes())
    tx = optim.build(tiny.optimizer(), dict.fromkeys(inside, optim.Group()), 1, 5)
    jitted = step.compile_train(step.Recipe(net, tx, accumulate), mesh.make(1), "jit")
    moving = jax.eval_shape(lambda p: step.init_train_state(p, tx), inside)
    program = jitted.lower(moving, outside, tiny.batch(net, 16), np.uint32(0), {}).compile(FAST)
    return cost.of(program, accumulate), net


def test_a_product_costs_two_flops_an_element():
    assert cost.of(compiled(jnp.matmul, (64, 128), (128, 32))).flops == pytest.approx(
        2 * 64 * 128 * 32, rel=0.01
    )


def test_bytes_are_those_of_the_arguments():
    assert cost.of(compiled(jnp.matmul, (64, 128), (128, 32))).argument_bytes == 4 * (64 * 128 + 128 * 32)


def products(x, w, n):
    return jax.lax.scan(lambda c, _: (c @ w, None), x, None, length=n)[0]


def test_a_loop_of_products_is_unknown_and_not_wrong():
    """XLA counts the body once: ten products would cost as much as one."""
    program = compiled(lambda x, w: products(x, w, 10), (16, 64), (64, 64))
    assert program.cost_analysis()["flops"] < 2 * 2 * 16 * 64 * 64
    assert cost.of(program).flops is None


def test_the_loop_over_parts_is_undone():
    program = compiled(lambda x, w: products(x, w, 4), (16, 64), (64, 64))
    assert cost.of(program, accumulate=4).flops == pytest.approx(4 * 2 * 16 * 64 * 64, rel=0.05)


def test_a_loop_without_products_counts_for_nothing():
    def f(x, w):
        return jax.lax.fori_loop(0, 10, lambda i, c: jnp.sin(c), x) @ w

    assert cost.of(compiled(f, (64, 128), (128, 32))).flops == pytest.approx(2 * 64 * 128 * 32, rel=0.2)


@pytest.mark.parametrize("task", ["classify", "mlm_nsp"])
def test_a_step_of_bert_costs_what_its_products_cost(task):
    """Per token 24 d^2 a block forward, attention 4 T d, thrice that with the backward pass."""
    once, net = of_step(task=task)
    b, t, d, layers, v = 16, 16, 64, 2, tiny.TOKENIZER.vocab_size
    forward = layers * b * t * (24 * d * d + 4 * t * d) + b * 2 * d * d
    if task == "mlm_nsp":
        forward += b * net.objective.predictions * 2 * d * (d + v)
    assert 1 < once.flops / (3 * forward) < 1.2  # what is not a product comes on top


@pytest.mark.parametrize("task", ["classify", "mlm_nsp"])
def test_accumulation_does_not_change_the_cost(task):
    once, _ = of_step(task=task)
    parts, _ = of_step(task=task, accumulate=4)
    # The optimizer runs once a step but stands for four times here; it is small.
    assert parts.flops == pytest.approx(once.flops, rel=0.25)


def test_an_lstm_is_unknown():
    assert of_step("lstm")[0].flops is None


def test_what_is_frozen_has_no_optimizer_state():
    everything, net = of_step()
    head, _ = of_step(chosen=["head/classifier/kernel", "head/classifier/bias"])
    body = sum(4 * tree.count({n: s}) for n, s in net.shapes().items() if n.startswith("backbone/"))
    assert everything.argument_bytes - head.argument_bytes == pytest.approx(2 * body, rel=0.01)
    assert head.temp_bytes < everything.temp_bytes


def test_text():
    assert (
        cost.describe(Cost(2.5e9, 3 * 2**20, 2**21))
        == "a step costs 2.5 GFLOP, 3 MiB state and batch, 2 MiB temporaries"
    )
    assert (
        cost.describe(Cost(1e9, None, None), Cost(4e9, None, None))
        == "a step costs 1 GFLOP (25.0% of training everything)"
    )
    assert (
        cost.describe(Cost(None, None, None))
        == "a step costs an unknown number of FLOP (it loops over time, or runs under pmap)"
    )
