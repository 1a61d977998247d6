"""A real S3 server on loopback."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import boto3
from moto.server import ThreadedMotoServer

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing", "AWS_EC2_METADATA_DISABLED": "true",
}  # fmt: skip


@contextmanager
def s3_bucket() -> Iterator[str]:
    """The URI of folders in a bucket, with {} for the folder; credentials stand in the environment."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    try:
        with mock.patch.dict(os.environ, CREDENTIALS):
            boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket="bucket")
            yield "s3://bucket/{}?endpoint_override=" + endpoint + "&region=us-east-1"
    finally:
        server.stop()
