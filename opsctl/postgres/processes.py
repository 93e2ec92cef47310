"""Child processes that do not outlive the program, however it ends."""

import ctypes
import os
from collections.abc import Callable
from signal import Signals

_PR_SET_PDEATHSIG = 1


def die_with_parent(signal: Signals) -> Callable[[], None]:
    """A ``preexec_fn`` that has the kernel send ``signal`` to the child when its parent dies, by SIGKILL too.

    The parent is the *thread* that starts the child: start from a thread that lives as long as the child should.
    Changing the user clears the setting, but subprocess does that (``user=``) before it calls this.
    Where the kernel has no such thing it does nothing.
    """
    try:
        prctl = ctypes.CDLL(None).prctl  # looked up before the fork: after it, only the call itself is safe
    except (AttributeError, OSError):
        return lambda: None
    parent = os.getpid()

    def in_child() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal), 0, 0, 0)
        if os.getppid() != parent:  # it died in between
            os._exit(1)

    return in_child
