"""What transformers says to developers does not reach the users of this package."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quietly() -> Iterator[None]:
    """No notices, load reports and bars of transformers inside; errors stay, and so do bars of downloads."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging._tqdm_active
    logging.set_verbosity_error()
    # `disable_progress_bar` would silence downloads as well, and its opposite may warn
    logging._tqdm_active = False
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging._tqdm_active = bars
