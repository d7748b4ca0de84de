"""Shapes in annotations: `Float[Tensor, "batch length"]`.

With jaxtyping installed these are its types, and the tests check every call against them. Without it they stand for the
plain tensor: the package does not need jaxtyping to run.
"""

from typing import TYPE_CHECKING

__all__ = ["Bool", "Float", "Int"]

if TYPE_CHECKING:
    # Type checkers know no shapes; to them Float[Tensor, "b l"] is Tensor.
    from typing import Annotated as Bool
    from typing import Annotated as Float
    from typing import Annotated as Int
else:
    try:
        from jaxtyping import Bool, Float, Int
    except ImportError:

        class _Plain:
            def __class_getitem__(cls, item):
                return item[0]

        Bool = Float = Int = _Plain
