"""Where runs that have not ended are kept: a folder that all machines share, or a bucket.

    open_storage("/shared/runs")        a folder; each run works in it
    open_storage("s3://bucket/runs")    a bucket; each machine works on a copy, see sweeps.keep.bucket

`workspace(uri)` opens the folder of one run on any machine.
"""

from pathlib import Path
from urllib.parse import parse_qs, urlsplit, urlunsplit
from urllib.request import url2pathname

from semidavil.config import ConfigError
from sweeps.keep.bucket import Bucket
from sweeps.keep.objects import joined
from sweeps.keep.workspace import Storage, Workspace
from sweeps.keep.workspace import StorageError as StorageError  # raised by all that is opened here

SCHEMES = ("s3", "gs", "abfs")
# The options that an address may have. Anything else may be a key, which would be logged.
OPTIONS = {"scheme", "region", "endpoint_override", "allow_bucket_creation", "retry_limit_seconds"}


def open_storage(text: str) -> Storage:
    """The storage that `--storage` names: a folder, also as file://..., or a bucket.

    Raises:
        ConfigError: an address of another kind, or one with a password in it.
    """
    parts = urlsplit(text)
    if "://" not in text or parts.scheme == "file":
        path = url2pathname(parts.path) if parts.scheme == "file" else text
        return Storage(str(Path(path).expanduser().resolve()))
    if parts.scheme not in SCHEMES:
        raise ConfigError(
            f"--storage {text}: checkpoints are kept in a folder, or in a bucket whose address begins "
            f"with {', '.join(f'{scheme}://' for scheme in SCHEMES)}; mount anything else as a folder"
        )
    if parts.password or (parts.username and parts.scheme == "s3"):
        raise ConfigError(
            f"--storage {parts.scheme}://***: no keys in the address, which is logged: set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY here and on every machine that trains"
        )
    if unknown := parse_qs(parts.query).keys() - OPTIONS:
        raise ConfigError(
            f"--storage {parts.scheme}://{parts.netloc}{parts.path}: unknown option "
            f"{', '.join(sorted(unknown))}; there are {', '.join(sorted(OPTIONS))}. Keys are set in the "
            "environment"
        )
    if not parts.netloc or not parts.path.strip("/"):
        raise ConfigError(f"--storage {text}: name a folder in the bucket, as in s3://BUCKET/runs")
    return Bucket(urlunsplit(parts._replace(path=parts.path.rstrip("/"))))


def workspace(uri: str) -> Workspace:
    """The workspace whose URI `Storage.of` has given."""
    if "://" not in uri:
        return Workspace(Path(uri), uri)
    parts = urlsplit(uri)
    above, _, key = parts.path.rpartition("/")
    return Bucket(urlunsplit(parts._replace(path=above))).workspace(key)


def file_of(uri: str, name: str) -> str:
    """The URI of a file in a workspace, for people."""
    return joined(uri, name) if "://" in uri else str(Path(uri) / name)
