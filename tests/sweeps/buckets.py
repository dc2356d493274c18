"""Buckets of a real S3 server on this machine's loopback, and what tests do with a run in one."""

from collections.abc import Callable

from moto.server import ThreadedMotoServer
from pyarrow.fs import FileSystem

from sweeps.keep.bucket import Bucket
from sweeps.keep.storage import Storage, workspace
from sweeps.keep.workspace import CHECKPOINT, Workspace

KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
KEY = "0123456789abcdef"  # of the run that `fetched` opens
FINISHED, FAILED = '{"status": "FINISHED"}', '{"status": "FAILED"}'
Machines = Callable[[str], None]  # moves to the machine of that name, see `machines.on_machine`


class BucketServer:
    """moto; keeps its objects in memory, also while it is away."""

    def __init__(self) -> None:
        self._start(port=0)
        FileSystem.from_uri(self.uri("bucket"))[0].create_dir("bucket")

    def _start(self, port: int) -> None:
        self._server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
        self._server.start()
        _, self.port = self._server.get_host_and_port()

    def uri(self, folder: str) -> str:
        """The address of bucket/folder, as a user would write it for a server of their own."""
        return (
            f"s3://{folder}?scheme=http&endpoint_override=127.0.0.1:{self.port}&region=us-east-1"
            "&allow_bucket_creation=true"
        )

    def stop(self) -> None:
        self._server.stop()

    def start_again(self) -> None:
        self._start(self.port)


def fetched(storage: Storage, epoch: int, run_id: str = "run") -> Workspace:
    """The workspace of a run."""
    opened = workspace(storage.of(KEY))
    opened.fetch(epoch, run_id)
    return opened


def in_bucket(bucket: Bucket, name: str) -> str | None:
    """What the bucket has of that run."""
    return bucket.objects.read(f"{KEY}/{name}")


def write(opened: Workspace, step: int, file: str = CHECKPOINT) -> None:
    """Replaces a file as training replaces its checkpoint."""
    draft = opened.folder / "draft.tmp"
    draft.write_text(f"step {step}")
    draft.replace(opened.folder / file)


def step_of(opened: Workspace, file: str = CHECKPOINT) -> int:
    """The step of a file that `write` has written; 0 if it is not there."""
    path = opened.folder / file
    return int(path.read_text().split()[1]) if path.exists() else 0
