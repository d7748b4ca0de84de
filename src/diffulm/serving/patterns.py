"""Regular expressions of strangers: a few characters may ask for an automaton of more states than there is memory.

So each is first tried in a process of its own, which has little time and memory, over single bytes; one that passes is made
again over the tokens by `constraints`.
"""

import subprocess
import sys
import threading
from functools import lru_cache

from diffulm.errors import BadInput, shown

SECONDS = 2
MEMORY = 2**30
STATES = 1000
_TRIAL = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_CPU, ({SECONDS}, {SECONDS}))
resource.setrlimit(resource.RLIMIT_AS, ({MEMORY}, {MEMORY}))
pattern = sys.stdin.read()
try:
    from outlines_core import Index, Vocabulary
    index = Index(f"(?:{{pattern}})\\x03", Vocabulary(256, {{bytes([one]): [one] for one in range(256)}}))
except (ImportError, ValueError):  # it will be said when it is made again
    sys.exit(0)
sys.exit(len(index.get_transitions()) > {STATES})
"""
one_at_a_time = threading.Lock()
"""To be held by who calls `check`."""


@lru_cache(maxsize=1024)
def check(pattern: str) -> None:
    """BadInput for one that takes too much; what is no pattern at all passes."""
    command = [sys.executable, "-I", "-c", _TRIAL]
    try:
        ended = subprocess.run(command, input=pattern.encode(), capture_output=True, timeout=10 * SECONDS)
    except subprocess.TimeoutExpired:
        ended = None
    if ended is None or ended.returncode:
        raise BadInput(f"the pattern {shown(pattern)} takes too much time or memory: give a simpler one")
