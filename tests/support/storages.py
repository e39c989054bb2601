"""Object stores on loopback, and a folder that stands for one: where tests put files."""

import contextlib
import functools
import os
import shutil
import socket
from pathlib import Path

import pytest

from flax_adapt.base.remote import addresses, copies, store

BUCKET = "bucket"
KINDS = ("file", "gs", "s3")


def _free_port():
    with contextlib.closing(socket.socket()) as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def _tell_generations(server):
    """TensorStore reads an object's generation from a header that the emulator lacks."""
    download = server.objects.download

    def answer(request, response, storage):
        download(request, response, storage)
        if response.status < 300:
            found = storage.get_file_obj(
                request.params["bucket_name"], request.params["object_id"]
            )
            response["x-goog-generation"] = found["generation"]

    server.objects.download = answer


@functools.cache
def _serve_gs():
    """The address of a Google Cloud Storage in memory, which ends with the process."""
    server = pytest.importorskip("gcp_storage_emulator.server")
    pytest.importorskip("gcsfs")
    _tell_generations(server)
    port = _free_port()
    running = server.create_server(
        "127.0.0.1", port, in_memory=True, default_bucket=BUCKET
    )
    running._api.daemon = True  # else Python waits for it at its end
    running.start()
    return f"http://127.0.0.1:{port}"


@functools.cache
def _serve_s3():
    """The address of an S3 in memory, which ends with the process."""
    server = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    running = server.ThreadedMotoServer(port=_free_port(), verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    return f"http://{host}:{port}"


def start(kind, monkeypatch, tmp_path):
    """Returns an empty folder on a storage of this kind, as an address.

    Copies lie below `tmp_path`, and so does what file:// stands for.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    copies.forget()
    if kind == "file":
        return f"file://{tmp_path}/storage"
    if kind == "gs":
        host = _serve_gs()
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", host)
        monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", host)
    else:
        for name, value in dict(
            AWS_ENDPOINT_URL=_serve_s3(),
            AWS_ACCESS_KEY_ID="x",
            AWS_SECRET_ACCESS_KEY="x",
            AWS_DEFAULT_REGION="us-east-1",
        ).items():
            monkeypatch.setenv(name, value)
        storage = store.open_storage(addresses.parse(f"s3://{BUCKET}"))
        if not storage.exists(BUCKET):
            storage.mkdir(BUCKET)
    return f"{kind}://{BUCKET}/{tmp_path.name}"


def write(folder, **files):
    """Writes files, with __ for each / of their names; returns the folder."""
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def put(folder, address):
    """Copies a folder or file to an address, which is returned."""
    folder = Path(folder)
    names = [""] if folder.is_file() else copies.list_files(folder)
    store.upload(addresses.parse(address), folder, names)
    copies.forget()
    return address


def get(address):
    """{name: bytes} of all objects below an address."""
    found, at = {}, addresses.parse(address)
    storage = store.open_storage(at)
    for name in store.list_objects(at):
        found[name] = storage.cat_file(at.join(name).path if name else at.path)
    return found


def delete_copies():
    copies.forget()
    shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)
