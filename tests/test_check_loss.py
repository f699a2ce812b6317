"""`check_loss` passes the losses there are and one of a user's own, and names what is wrong with others."""

import jax
import jax.numpy as jnp
import pytest

import lrjax as lr
from lrjax.testing import check_loss


@lr.operators.pytree
class StudentT:
    """`weight (1 + df) / 2 log(1 + r^2 / df)`, of curvature `weight (1 + df) / df` at zero."""

    df: float = 2.0
    weight: float = 1.0

    def value(self, r):
        return 0.5 * self.weight * (1 + self.df) * jnp.log1p(r * r / self.df)

    def gradient(self, r):
        return self.weight * (1 + self.df) * r / (self.df + r * r)

    def reweight(self, r, floor):
        return self.weight * (1 + self.df) / (self.df + r * r)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_losses_of_the_library(scale):
    check_loss(lr.losses.Squared(), scale=scale)
    check_loss(lr.losses.Absolute(), smooth=False, scale=scale)
    check_loss(lr.losses.Huber(0.7 * scale), scale=scale)


def test_a_loss_of_a_user(x64):
    check_loss(StudentT(weight=2 / 3))
    check_loss(StudentT(weight=2 / 3), dtype=jnp.float32)
    check_loss(StudentT(), smooth=False)


def changed(**methods):
    return lr.operators.pytree(type("Changed", (StudentT,), {"__annotations__": {}, **methods}))(weight=0.5)


WRONG = [
    (StudentT(), "the curvature exceeds one"),
    (lr.losses.Absolute(), "the curvature exceeds one"),
    (changed(gradient=lambda self, r: 2 * StudentT.gradient(self, r)), "gradient is not the slope"),
    (changed(gradient=lambda self, r: -StudentT.gradient(self, r)), "gradient is not the slope"),
    (changed(value=lambda self, r: StudentT.value(self, r) - 1), "value is negative, or not zero at zero"),
    (changed(reweight=lambda self, r, floor: StudentT.gradient(self, r)), "reweight is not gradient / residual"),
    (changed(reweight=lambda self, r, floor: StudentT.gradient(self, r) / r), "reweight is not finite"),
    (changed(value=lambda self, r: jnp.sum(StudentT.value(self, r))), "value turned the shape"),
    (changed(value=lambda self, r: StudentT.value(self, r) / jnp.sum(r * r)), "value is not"),
    (changed(gradient=lambda self, r: StudentT.gradient(self, r).astype(jnp.float16)), "gradient turned float32"),
    (changed(degree=1, in_units=lambda self, unit: self), "in_units is another loss"),
]


@pytest.mark.parametrize(("loss", "text"), WRONG, ids=[text for _, text in WRONG])
def test_what_is_wrong_is_named(loss, text):
    with pytest.raises(AssertionError, match=text):
        check_loss(loss)


def test_a_parabola_that_cuts_the_loss():
    """A loss that grows faster than a parabola: reweighted least squares would rise."""
    fourth = changed(
        value=lambda self, r: r**4, gradient=lambda self, r: 4 * r**3, reweight=lambda self, r, floor: 4 * r**2
    )
    with pytest.raises(AssertionError, match="parabola of reweight is not above"):
        check_loss(fourth, smooth=False, scale=1e-2)


def test_a_loss_that_is_no_pytree():
    class Plain(StudentT):
        pass

    Plain.__init__ = lambda self: None
    with pytest.raises(TypeError):
        check_loss(Plain())
    assert jax.tree.leaves(StudentT()) == [2.0, 1.0]
