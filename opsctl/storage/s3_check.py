"""What has to work in a bucket, tried, and what its rules do to backups.

Nothing stays. Where the credentials may not delete, no object is put at all: an upload that is aborted shows whether
one could be. Locks are tried on an object that is not there: what is locked cannot be taken back.
"""

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from opsctl.errors import RemovalRefused, RepositoryUnreachable
from opsctl.storage import TRIAL_PREFIX, Trial, new_trial
from opsctl.storage.s3_errors import error_code, http_status
from opsctl.storage.s3_transfer import status_of_cause

if TYPE_CHECKING:
    from opsctl.storage.s3 import S3Storage

DATA = b"opsctl tries whether backups can be written here\n"
SHORTEST_ABORT_DAYS = 2
"""A dump of a large database may take longer than a day: a rule that aborts uploads earlier ends its backup."""

ARCHIVES = frozenset({"GLACIER", "DEEP_ARCHIVE"})
"""Classes whose objects have to be thawed before they can be read."""

DELETE_LESS = "A supported set-up: backups work, and are removed with other credentials (docs/s3.md)."


def examine(storage: "S3Storage") -> Iterator[Trial]:
    examination = _Examination(storage)
    yield examination.listing()
    yield from examination.listing_of_uploads()
    yield examination.upload()
    may_delete = examination.delete()
    if may_delete.status == "ok":
        yield from examination.objects(may_delete)
    else:
        yield may_delete
        yield from _not_put("what is put could not be removed again")
    yield examination.lock()
    yield from examination.lifecycle()


def remove_trials(storage: "S3Storage", before: datetime) -> None:
    """With all their versions; uploads too."""
    inside = storage.full_key(TRIAL_PREFIX)
    for upload in storage.uploads(inside):
        if upload["Initiated"] < before:
            storage.abort(upload["Key"], upload["UploadId"])
    if storage.versions.are_kept:
        found = {each.key for each in storage.versions.below(inside) if each.modified_at < before}
    else:
        with storage.mapped("list"):
            answer = storage.client.list_objects_v2(Bucket=storage.bucket, Prefix=inside)
        found = {each["Key"] for each in answer.get("Contents", ()) if each["LastModified"] < before}
    for key in sorted(found):
        storage.delete(storage.relative(key))


def _not_put(why: str) -> list[Trial]:
    return [Trial(each, "skip", f"Not tried: {why}.") for each in ("put", "get", "conditional_put")]


class _Examination:
    """The trials of one bucket, each by itself; what one finds out does not hold up the others."""

    def __init__(self, storage: "S3Storage") -> None:
        self._storage = storage
        self._key = new_trial()

    def listing(self) -> Trial:
        def attempt() -> str:
            kept = "It keeps versions." if self._storage.versions.are_kept else "It keeps no versions."
            self._storage.prepare()
            return f"The bucket answers and can be listed. {kept}"

        return _tried("list", attempt, vital=True)

    def listing_of_uploads(self) -> Iterator[Trial]:
        """Nothing to say where it works, or where the service does not know it."""
        try:
            with self._storage.mapped("list"):
                self._storage.client.list_multipart_uploads(
                    Bucket=self._storage.bucket, Prefix=self._storage.full_key(""), MaxUploads=1
                )
        except RepositoryUnreachable as error:
            if status_of_cause(error) == 403:
                text = "Uploads may not be listed: what interrupted backups leave is not seen, and not removed."
                hint = "s3:ListBucketMultipartUploads allows it; else a lifecycle rule of the bucket has to end them."
                yield Trial("list_uploads", "warn", text, hint)

    def upload(self) -> Trial:
        def attempt() -> str:
            self._storage.try_write()
            return "Uploads in parts can be begun, written to and aborted."

        try:
            return _tried("multipart", attempt, vital=True)
        except RemovalRefused as error:
            return Trial("multipart", "warn", f"{error.message} So none was begun.", error.hint)

    def delete(self) -> Trial:
        """Tried on a file that is not there, or a version: a key alone would leave a delete marker behind."""

        def attempt() -> str:
            with self._storage.mapped("delete"):
                self._delete_nothing()
            return "Files can be removed."

        try:
            return _tried("delete", attempt)
        except RemovalRefused as error:
            return Trial("delete", "warn", error.message, DELETE_LESS)

    def _delete_nothing(self) -> None:
        target = {"Bucket": self._storage.bucket, "Key": self._storage.full_key(self._key)}
        if not self._storage.versions.are_kept:
            self._storage.client.delete_object(**target)
            return
        try:
            self._storage.client.delete_object(**target, VersionId="null")
        except self._storage.client.exceptions.ClientError as error:
            if http_status(error) not in {400, 404}:  # there is no such version: whoever is told that may delete one
                raise

    def objects(self, may_delete: Trial) -> list[Trial]:
        """Put one, read it, try to replace it, and remove it whatever happened."""
        if self._default_lock():
            return [may_delete, *_not_put("the bucket locks every new object by itself, this one too")]
        try:
            found = list(self._put_and_read())
        finally:
            removed = self._removed(may_delete)
        return [removed, *found]

    def _put_and_read(self) -> Iterator[Trial]:
        def put() -> str:
            self._put()
            return "Objects can be put."

        def get() -> str:
            if self._storage.read(self._key) != DATA:
                raise RepositoryUnreachable("What was put is not what is read.", hint="What lies in between?")
            return "They can be read back."

        trial = _tried("put", put, vital=True)
        yield trial
        if trial.status == "ok":
            yield _tried("get", get, vital=True)
            yield self._conditional()

    def _removed(self, may_delete: Trial) -> Trial:
        try:
            self._storage.delete(self._key)
        except RepositoryUnreachable as error:
            return Trial("delete", "warn", f"{self._key} was left behind. {error.message}", error.hint)
        return may_delete

    def _put(self, **more: Any) -> None:
        """As a manifest is."""
        with self._storage.mapped("write"):
            self._storage.put_object(self._key, DATA, **more)

    def _conditional(self) -> Trial:
        fallback = "opsctl looks before it writes, and reads back: docs/repository-format.md says what that means."
        try:
            self._put(IfNoneMatch="*")
        except RepositoryUnreachable as error:
            status = status_of_cause(error)
            if status in {409, 412}:
                return Trial("conditional_put", "ok", "The service refuses to replace an object (If-None-Match).")
            if status in {400, 501}:
                return Trial("conditional_put", "warn", "The service knows no conditional writes.", fallback)
            return Trial("conditional_put", "fail", error.message, error.hint)
        return Trial("conditional_put", "warn", "The service ignores the condition of a conditional write.", fallback)

    def _default_lock(self) -> bool:
        """Whether the bucket locks what is put into it by itself."""
        if not self._storage.versions.have_locks:
            return False
        try:
            answer = self._asked("get_object_lock_configuration")
        except RepositoryUnreachable:
            return True  # not to be had: better not to put what may stay
        return "Rule" in answer.get("ObjectLockConfiguration", {})

    def lock(self) -> Trial:
        mode = self._storage.options.object_lock
        if mode == "off":
            return Trial("lock", "skip", "object_lock is off.")
        try:
            has_locks = self._storage.versions.have_locks
        except RepositoryUnreachable as error:
            return Trial("lock", "fail", error.message, error.hint)
        if not has_locks:
            text = f"object_lock is {mode}, and the bucket has no Object Lock: no backup can be written."
            return Trial(
                "lock", "fail", text, "Switch it on for the bucket (docs/s3.md), or set it to off.", vital=True
            )
        return _tried("lock", lambda: self._may_lock(mode), vital=True)

    def _may_lock(self, mode: str) -> str:
        """Tried on an object that is not there."""
        tomorrow = (self._storage.now() or datetime.now(UTC)) + timedelta(days=1)
        try:
            with self._storage.mapped("lock", self._key):
                self._storage.client.put_object_retention(
                    Bucket=self._storage.bucket,
                    Key=self._storage.full_key(self._key),
                    Retention={"Mode": mode.upper(), "RetainUntilDate": tomorrow},
                )
        except FileNotFoundError:
            return f"The bucket has Object Lock, and these credentials may lock: in {mode} mode."
        except RepositoryUnreachable as error:
            if status_of_cause(error) == 403:
                hint = "s3:PutObjectRetention allows it (docs/s3.md)."
                raise RepositoryUnreachable(error.message, hint=hint) from error
        return (
            f"The bucket has Object Lock, for {mode} mode; the service does not say whether these credentials may lock."
        )

    def lifecycle(self) -> Iterator[Trial]:
        try:
            rules = self._asked("get_bucket_lifecycle_configuration").get("Rules", [])
        except RepositoryUnreachable as error:
            code = error_code(error.__cause__) if hasattr(error.__cause__, "response") else ""
            if code != "NoSuchLifecycleConfiguration":
                text = f"The bucket's lifecycle rules cannot be read ({code or error.message})."
                yield Trial("lifecycle", "skip", text, "s3:GetLifecycleConfiguration allows it.")
                return
            rules = []
        troubles = [trouble for rule in rules if self._concerns(rule) for trouble in judge_rule(rule)]
        yield from troubles or [Trial("lifecycle", "ok", "No rule of the bucket touches backups.")]

    def _concerns(self, rule: Mapping[str, Any]) -> bool:
        """Whether a rule is on, and about something of this repository. What is stored here has no tags."""
        chosen = rule.get("Filter") or {}
        both = chosen.get("And", {})
        prefix = chosen.get("Prefix") or both.get("Prefix") or rule.get("Prefix") or ""
        ours = self._storage.full_key("")
        is_on = rule.get("Status") == "Enabled" and not chosen.get("Tag") and not both.get("Tags")
        return is_on and (ours.startswith(prefix) or prefix.startswith(ours))

    def _asked(self, operation: str) -> dict[str, Any]:
        with self._storage.mapped("ask"):
            answer: dict[str, Any] = getattr(self._storage.client, operation)(Bucket=self._storage.bucket)
        return answer


def judge_rule(rule: Mapping[str, Any]) -> Iterator[Trial]:
    """What a lifecycle rule does to backups. Pure."""
    name = f"The lifecycle rule {rule.get('ID') or 'without a name'}"
    expiration = rule.get("Expiration", {})
    if "Days" in expiration or "Date" in expiration:
        when = f"after {expiration['Days']} days" if "Days" in expiration else f"on {expiration['Date']:%Y-%m-%d}"
        text = f"{name} removes backups {when}, whatever the retention says."
        yield Trial("lifecycle", "fail", text, "Leave it to opsctl prune: remove the rule, or give it another prefix.")
    abort_days = rule.get("AbortIncompleteMultipartUpload", {}).get("DaysAfterInitiation")
    if abort_days is not None and abort_days < SHORTEST_ABORT_DAYS:
        text = f"{name} aborts uploads after {abort_days} day: a backup that takes longer can never be finished."
        yield Trial("lifecycle", "fail", text, "Make it 3 days or more.")
    noncurrent = rule.get("NoncurrentVersionExpiration", {}).get("NoncurrentDays")
    if noncurrent is not None:
        text = f"{name} removes what was deleted or replaced after {noncurrent} days: so long can it be brought back."
        yield Trial("lifecycle", "warn", text, "Fine, if that is long enough to notice that somebody deleted backups.")
    archives = sorted({each.get("StorageClass") for each in rule.get("Transitions", ())} & ARCHIVES)
    if archives:
        text = f"{name} moves backups to {', '.join(archives)}: they must be thawed before a restore or a check."
        yield Trial("lifecycle", "warn", text, "GLACIER_IR can be read at once.")


def _tried(identifier: str, attempt: Callable[[], str], *, vital: bool = False) -> Trial:
    """Raises RemovalRefused alone: what that means is not the same everywhere."""
    try:
        return Trial(identifier, "ok", attempt(), vital=vital)
    except FileNotFoundError as error:
        return Trial(identifier, "fail", f"{error.filename} is not there.", "Run it again.", vital=vital)
    except RemovalRefused:
        raise
    except RepositoryUnreachable as error:
        return Trial(identifier, "fail", error.message, error.hint, vital=vital)
