"""What every result can be asked: whether it converged, and to raise if it did not."""

from typing import ClassVar, Self

import jax

from lrjax import status


class Result:
    """Base of the results; a subclass is a pytree with a field `status`.

    Attributes:
        REASONS: texts of codes that say more than those of `lrjax.status`.
    """

    status: jax.Array
    REASONS: ClassVar[dict[int, str]] = {}

    @property
    def converged(self) -> jax.Array:
        """Whether it is done to its tolerance, one for each lane."""
        return self.status == status.CONVERGED

    def check(self, *, require_convergence: bool = False) -> Self:
        """Raises on the host if a lane failed; returns the result otherwise. Not for traced code.

        Args:
            require_convergence: also count lanes that merely used up their steps as failed.

        Raises:
            SolveError: of `lrjax.status`; says which lanes failed and why.
        """
        status.raise_if_failed(self.status, require_convergence=require_convergence, reasons=self.REASONS)
        return self
