"""The keys of an s3:// repository reach the service: certificates, addresses, regions, storage classes, encryption."""

import sys
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest

from opsctl.repository import Repository
from opsctl.settings import RepositorySettings
from opsctl.storage import open_storage

pytestmark = pytest.mark.end_to_end


def storage_of(url, **keys):
    """The storage as a section of the configuration asks for it."""
    return open_storage(url, RepositorySettings(url=url, **keys))


def publish(storage, folder="shop/a"):
    publication = storage.begin(folder)
    with publication.file("dump.zst") as file:
        file.write(b"dump")
    publication.publish("manifest.json", b"{}")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for 127.0.0.1 that nobody has signed but itself, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "certificate.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = serialization.PrivateFormat.PKCS8
    pem = key.private_bytes(serialization.Encoding.PEM, private, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(pem)
    return folder / "certificate.pem", folder / "key.pem"


@pytest.fixture(scope="module")
def tls_port(certificate, tmp_path_factory, serving):
    """An S3 service behind that certificate."""
    file, key = certificate
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-c", str(file), "-k", str(key)]
    with serving(command, tmp_path_factory.mktemp("moto")) as port:
        yield port


@pytest.mark.acceptance
def test_a_certificate_authority_of_ones_own(tls_port, certificate, run_opsctl, credentials, saas):
    """With ``ca_bundle`` the service is trusted; without it the run ends with 13 and names the key."""
    endpoint = f"https://127.0.0.1:{tls_port}"
    bundle = {"endpoint_url": endpoint, "ca_bundle": certificate[0], "region": "eu-central-1"}
    storage = storage_of("s3://tls/backups", **bundle)
    where = {"LocationConstraint": "eu-central-1"}
    storage.client.create_bucket(Bucket="tls", CreateBucketConfiguration=where)
    text = f'[databases.shop]\nurl = "{saas.url}"\n[repositories.offsite]\nurl = "s3://tls/backups"\n'
    text += f'endpoint_url = "{endpoint}"\n'
    file = run_opsctl.work / "opsctl.toml"
    file.write_text(text)
    error = run_opsctl("backup", "--json", env=credentials).json["error"]
    assert "TLS" in error["message"]
    assert "ca_bundle" in error["hint"]

    file.write_text(f'{text}ca_bundle = "{certificate[0]}"\nregion = "eu-central-1"\n')
    assert run_opsctl("backup", env=credentials).returncode == 0
    assert run_opsctl("verify", env=credentials).returncode == 0
    assert len(Repository("offsite", storage).catalog().backups) == 1

    file.write_text(f'{text}ca_bundle = "missing.pem"\n')
    missing = run_opsctl("list", "--json", env=credentials)
    assert missing.returncode == 13, missing
    assert "missing.pem" in missing.json["error"]["message"]


def test_the_region_signs_every_request(moto):
    """It stands in the scope of the signature, which a service of another region refuses."""
    storage = storage_of(f"s3://{moto.new_bucket()}/p", endpoint_url=moto.endpoint, region="ap-south-1")
    seen = []
    storage.client.meta.events.register("before-send.s3", lambda request, **_: seen.append(request.headers))
    storage.prepare()

    assert b"/ap-south-1/s3/aws4_request" in seen[0]["Authorization"]


@pytest.mark.parametrize(
    ("style", "address"),
    [
        ("virtual", "http://company.s3.example.org/"),
        ("path", "http://s3.example.org/company"),
        ("auto", "http://s3.example.org/company"),
    ],
)
def test_the_buckets_name_in_the_address(moto, proxied, run_opsctl, credentials, saas, style, address):
    """In the host's name or in the path, as configured; the requests go to a proxy, which hears what is asked for."""
    text = f'[databases.shop]\nurl = "{saas.url}"\n[repositories.offsite]\nurl = "s3://company/backups"\n'
    text += f'endpoint_url = "http://s3.example.org"\naddressing_style = "{style}"\n'
    (run_opsctl.work / "opsctl.toml").write_text(text)
    with proxied.Proxy(moto.endpoint) as proxy:
        proxy.faults = [lambda _request: proxied.refuse]
        done = run_opsctl("list", env={**credentials, "HTTP_PROXY": proxy.endpoint})

    assert done.returncode == 13, done
    assert proxy.requests[0].partition(" ")[2].startswith(address), proxy.requests


def test_storage_class_and_encryption_are_the_dumps(moto):
    """The dump has the class that was asked for, the manifest is readable at once, and both are encrypted."""
    bucket = moto.new_bucket()
    keys = {"storage_class": "STANDARD_IA", "server_side_encryption": "aws:kms", "kms_key_id": "alias/backups"}
    storage = storage_of(f"s3://{bucket}/p", endpoint_url=moto.endpoint, region="us-east-1", **keys)
    publish(storage)
    found = {
        name: moto.client().head_object(Bucket=bucket, Key=f"p/shop/a/{name}") for name in ("dump.zst", "manifest.json")
    }

    assert {name: each.get("StorageClass", "STANDARD") for name, each in found.items()} == {
        "dump.zst": "STANDARD_IA",
        "manifest.json": "STANDARD",
    }
    assert {each["ServerSideEncryption"] for each in found.values()} == {"aws:kms"}
    assert {each["SSEKMSKeyId"] for each in found.values()} == {"alias/backups"}


def test_a_profile_names_the_credentials(rclone, run_opsctl, saas, tmp_path, credentials):
    """A section of AWS's own files is used, and only that one's keys let us in."""
    (tmp_path / "credentials").write_text(
        f"[wrong]\naws_access_key_id = x\naws_secret_access_key = yyyyyyyy\n[right]\n"
        f"aws_access_key_id = {credentials['AWS_ACCESS_KEY_ID']}\n"
        f"aws_secret_access_key = {credentials['AWS_SECRET_ACCESS_KEY']}\n"
    )
    bucket = rclone.new_bucket()
    outcomes = {}
    for profile in ("right", "wrong"):
        text = f'[databases.shop]\nurl = "{saas.url}"\n[repositories.offsite]\n{rclone.toml(bucket)}'
        (run_opsctl.work / "opsctl.toml").write_text(f'{text}profile = "{profile}"\n')
        done = run_opsctl("backup", "--json", env={"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials")})
        outcomes[profile] = done.returncode
    assert outcomes == {"right": 0, "wrong": 13}
