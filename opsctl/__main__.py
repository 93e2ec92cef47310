import sys


def main() -> None:
    from opsctl.cli.app import run  # the program starts here; `import opsctl` must stay free

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
