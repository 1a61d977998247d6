"""Real servers of the protocols of S3 and of Google's storage, on loopback.

Each yields the URI of folders in a bucket, with {} for the folder.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import boto3
from moto.server import ThreadedMotoServer

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing", "AWS_EC2_METADATA_DISABLED": "true",
}  # fmt: skip


@contextmanager
def s3_bucket() -> Iterator[str]:
    """Credentials stand in the environment."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    try:
        with mock.patch.dict(os.environ, CREDENTIALS):
            boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket="bucket")
            yield "s3://bucket/{}?endpoint_override=" + endpoint + "&region=us-east-1"
    finally:
        server.stop()


@contextmanager
def gs_bucket() -> Iterator[str]:
    """A process of its own: pyarrow waits for answers with Python's lock held."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [
            Path(sys.executable).with_name("gcp-storage-emulator"), "start", "--quiet", "--in-memory",
            "--host", "127.0.0.1", "--port", str(port), "--default-bucket", "bucket",
        ],
        # It tells clients to upload where this variable says.
        env=os.environ | {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}"},
    )  # fmt: skip
    try:
        with socket.socket() as probe:
            while probe.connect_ex(("127.0.0.1", port)):
                assert server.poll() is None
                time.sleep(0.05)
        yield f"gs://anonymous@bucket/{{}}?scheme=http&endpoint_override=127.0.0.1:{port}&retry_limit_seconds=5"
    finally:
        server.kill()
        server.wait()


BUCKETS = {"s3": s3_bucket, "gs": gs_bucket}
