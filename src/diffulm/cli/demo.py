"""`diffulm demo`"""

from __future__ import annotations


def demo() -> None:
    """The whole story, here and now.

    Adapt a real model on this machine, without a download, and fill holes in code with it.
    """
    from diffulm.recipes.demo import run

    run()
