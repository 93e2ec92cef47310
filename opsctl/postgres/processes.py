"""Child processes that do not outlive the program, however it ends."""

import ctypes
import os
from collections.abc import Callable
from signal import Signals

_PR_SET_PDEATHSIG = 1


def die_with_parent(signal: Signals, *, niceness: int = 0) -> Callable[[], None]:
    """A ``preexec_fn`` that has the kernel send ``signal`` to the child when its parent dies, by SIGKILL too.

    The child's priority becomes that of ``niceness``, where ours is higher. It does so itself: of a process of another
    user, root may not change it in a container or a confined unit.

    The parent is the *thread* that starts the child: start from a thread that lives as long as the child should.
    Changing the user clears the setting, but subprocess does that (``user=``) before it calls this.
    Where the kernel has no such thing it does nothing of the kind.
    """
    lower = max(0, niceness - os.getpriority(os.PRIO_PROCESS, 0))
    try:
        prctl = ctypes.CDLL(None).prctl  # looked up before the fork: after it, only the call itself is safe
    except (AttributeError, OSError):
        return lambda: None
    parent = os.getpid()

    def in_child() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal), 0, 0, 0)
        if os.getppid() != parent:  # it died in between
            os._exit(1)
        if lower:
            os.nice(lower)

    return in_child
