import gc
import signal
import sys

OBJECTS_A_COLLECTION = 50_000
"""Python's 700 have it look for garbage a hundred times while modules are loaded: a tenth of a short command's time."""


def main() -> None:
    gc.set_threshold(OBJECTS_A_COLLECTION)
    asked = signal.getsignal(signal.SIGINT)
    if asked is signal.default_int_handler:
        # While modules are loaded there is nothing to clean up: Ctrl-C ends at once, without a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.argv[1:2] == ["__complete"]:
        from opsctl.cli.complete import main as complete  # a shell asks, and somebody waits: see there

        complete(" ".join(sys.argv[2:]))
        return
    from opsctl.cli.app import run  # the program starts here; `import opsctl` must stay free

    signal.signal(signal.SIGINT, asked)
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
