"""A bucket for the tests of URLs."""

import json
import socket
import urllib.parse
import urllib.request

import fsspec.asyn
import pytest


@pytest.fixture
def bucket(monkeypatch):
    """Serve an empty bucket gs://runs; yields a function that lists the names of its objects.

    A local server emulates Google Cloud Storage's interface.
    """
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    gcsfs = pytest.importorskip("gcsfs")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        server = f"http://localhost:{free.getsockname()[1]}"
    for name, value in {
        "STORAGE_EMULATOR_HOST": server,  # gcsfs, google-cloud-storage
        "TENSORSTORE_GCS_HTTP_URL": server,
        "GOOGLE_CLOUD_PROJECT": "none",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # it would ask Google what bucket this is
    }.items():
        monkeypatch.setenv(name, value)
    # TensorFlow's client cannot be directed to another server than Google's.
    monkeypatch.setattr("etils.epath.gpath._is_tf_installed", lambda: False)
    # The server cannot move objects; gcsfs would ask it for a minute before it copies.
    plain = fsspec.asyn.AsyncFileSystem._mv_file
    monkeypatch.setattr(gcsfs.GCSFileSystem, "_mv_file", plain)

    def objects():
        with urllib.request.urlopen(f"{server}/storage/v1/b/runs/o") as answer:
            return [item["name"] for item in json.load(answer).get("items", ())]

    port = urllib.parse.urlparse(server).port
    with emulator.create_server("localhost", port, in_memory=True, default_bucket="runs"):
        gcsfs.GCSFileSystem.clear_instance_cache()
        yield objects
    gcsfs.GCSFileSystem.clear_instance_cache()
