"""A real S3 server for tests, on this machine's loopback."""

from moto.server import ThreadedMotoServer
from pyarrow.fs import FileSelector, FileSystem, FileType

KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}


class BucketServer:
    """moto; keeps its objects in memory, also while it is away."""

    def __init__(self) -> None:
        self._start(port=0)
        FileSystem.from_uri(self.place("bucket"))[0].create_dir("bucket")

    def _start(self, port: int) -> None:
        self._server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
        self._server.start()
        _, self.port = self._server.get_host_and_port()

    def place(self, folder: str) -> str:
        """The address of bucket/folder, as a user would write it for a server of their own."""
        return (
            f"s3://{folder}?scheme=http&endpoint_override=127.0.0.1:{self.port}&region=us-east-1"
            "&allow_bucket_creation=true"
        )

    def names(self, folder: str) -> set[str]:
        """Objects below bucket/folder."""
        system, base = FileSystem.from_uri(self.place(folder))
        found = system.get_file_info(FileSelector(base, recursive=True, allow_not_found=True))
        return {info.path.removeprefix(f"{base}/") for info in found if info.type == FileType.File}

    def stop(self) -> None:
        self._server.stop()

    def start_again(self) -> None:
        self._start(self.port)
