import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opsctl.cli.files import new_file
from opsctl.cli.output import Outcome
from opsctl.errors import UsageError

if TYPE_CHECKING:
    from opsctl.cli.session import Session

KeyFile = Annotated[
    Path | None, typer.Option("--output", "-o", help="Write the secret key to this new file instead of stdout.")
]
SigningOption = Annotated[
    bool, typer.Option("--signing", help="Make a key that signs manifests, instead of one that opens backups.")
]


def keygen(session: "Session", output: KeyFile = None, signing: SigningOption = False) -> Outcome:
    """Make an age identity, which opens the backups encrypted to its public key.

    With -o the secret key goes to a new file that only its owner can read, and stdout is the public key. Without it
    the secret key goes to stdout, and the public one to stderr.

    Example: [bold]opsctl keygen -o opsctl.key[/bold]
    """
    to_stdout = output is None or str(output) == "-"
    if to_stdout and session.options.json:
        raise UsageError("A secret key does not belong in a JSON document.", hint="Name a file with -o.")
    if to_stdout and sys.stdout.isatty():
        raise UsageError("A secret key does not belong on a terminal.", hint="Name a file with -o, or pipe it on.")
    public_key, secret = _pair(session, signing=signing)
    if output is None or to_stdout:
        sys.stdout.write(secret)
        session.output.show(f"Public key: {public_key}")
        return Outcome(None)
    new_file(output, secret)
    kind = "signing" if signing else "encryption"
    return Outcome({"kind": kind, "public_key": public_key, "file": str(output)}, [public_key])


def _pair(session: "Session", *, signing: bool) -> tuple[str, str]:
    """The public and the secret key."""
    if signing:
        from opsctl.signing import new_signing_key

        return new_signing_key()
    from opsctl.encryption import new_identity

    return new_identity(session.clock())
