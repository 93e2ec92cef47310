from typing import TYPE_CHECKING, Any

from opsctl.cli.catalog import readable_copy
from opsctl.cli.output import Outcome, counted
from opsctl.errors import ExitCode, NoSuchBackup

if TYPE_CHECKING:
    from opsctl.catalog import Backup
    from opsctl.cli.session import Session
    from opsctl.postgres.server import Server


def create_missing_roles(session: "Session", backup: "Backup", server: "Server", *, plan_only: bool) -> Outcome:
    """``restore --globals``: roles come before their objects; what exists already is shown and left as it is."""
    from opsctl.roles import create_roles, existing_roles, plan_roles, read_globals, without_password

    repository, copy = readable_copy(session, backup)
    session.keys.require(repository, copy.manifest)
    sql = read_globals(repository, copy.manifest, session.keys.identities if copy.manifest.encryption else None)
    if sql is None:
        raise NoSuchBackup(
            f"{backup.id} holds no roles: its login could not read them.",
            hint="Create them by hand, or use --no-owner.",
        )
    planned = plan_roles(sql, existing_roles(server))
    refused = [] if plan_only else create_roles(server, planned)
    result: dict[str, Any] = {
        "backup_id": backup.id,
        "database": backup.database,
        "missing": list(planned.missing),
        "statements": [without_password(each) for each in planned.statements],
        "left_alone": [without_password(each) for each in planned.left_alone],
        "refused": refused,
        "plan": plan_only,
    }
    verb = "Would create" if plan_only else "Created"
    text = [f"{verb} {counted(len(planned.missing), 'role')}: {', '.join(planned.missing) or 'none is missing'}"]
    text += [f"  refused: {each}" for each in refused]
    if planned.left_alone:
        text.append("The backup also says, and it was left alone:")
        text += [f"  {each}" for each in result["left_alone"]]
    code = ExitCode.ATTENTION if refused else ExitCode.DONE
    return Outcome(result, text, code, fields={"backup_id": backup.id})
