"""What transformers says to developers does not reach the users of this package."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

# It complains at its import, which the Trainer does for everybody, of a kernel that only quantised models would use.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@contextmanager
def quietly() -> Iterator[None]:
    """No notices, load reports and bars of transformers inside; errors stay, and so do bars of downloads."""
    from transformers.utils import logging as theirs

    verbosity, bars = theirs.get_verbosity(), theirs._tqdm_active
    theirs.set_verbosity_error()
    # `disable_progress_bar` would silence downloads as well, and its opposite may warn
    theirs._tqdm_active = False
    try:
        yield
    finally:
        theirs.set_verbosity(verbosity)
        theirs._tqdm_active = bars
