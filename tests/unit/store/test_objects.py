"""The object store behind a shared state, against a server of the S3 protocol and its faults."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from tests.s3_server import BUCKET, S3Server, environment, running
from tracefactory.core.errors import UserError
from tracefactory.store.shared import cloud
from tracefactory.store.shared.cloud import check_conditions, checked_url, connect, open_objects
from tracefactory.store.shared.objects import Objects, Unreachable, put_whole

URL = f"s3://{BUCKET}/state"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    backoff: Any = {"init_backoff": timedelta(milliseconds=1), "max_backoff": timedelta(milliseconds=5), "base": 2}
    monkeypatch.setattr(cloud, "_RETRY", {**cloud._RETRY, "max_retries": 3, "backoff": backoff})
    with running(S3Server(page=3)) as one:
        for name, value in environment(one).items():
            monkeypatch.setenv(name, value)
        yield one


@pytest.fixture
def objects(server: S3Server) -> Objects:
    return connect(URL)


def test_an_object_is_created_once_and_replaced_only_if_it_is_as_before(objects: Objects) -> None:
    etag = objects.create("a/one", b"1")
    assert etag
    assert objects.create("a/one", b"2") is None
    assert objects.replace("a/one", b"2", '"other"') is None
    assert objects.replace("a/missing", b"2", etag) is None
    second = objects.replace("a/one", b"22", etag)
    assert second
    content, head = objects.get("a/one")
    assert (content, head.size, head.etag) == (b"22", 2, second)
    assert objects.head("a/one") == head
    objects.delete("a/one")
    objects.delete("a/one")
    with pytest.raises(FileNotFoundError):
        objects.get("a/one")
    with pytest.raises(FileNotFoundError):
        objects.head("a/one")


def test_a_list_has_all_pages_in_order_and_begins_after_a_name(objects: Objects, server: S3Server) -> None:
    names = [f"a/{number:02d}/x" for number in range(10)]
    for name in reversed(names):
        objects.create(name, b"1")
    objects.create("ab/other", b"1")
    server.faults["LIST"] = ["slow", 503]
    assert [one.name for one in objects.list("a")] == names
    assert [one.name for one in objects.list("a", "a/07")] == names[7:]


@pytest.mark.parametrize("fault", [500, 503])
def test_faults_that_pass_are_tried_again(objects: Objects, server: S3Server, fault: int) -> None:
    server.faults = {"PUT": [fault, fault], "GET": [fault, fault]}
    assert objects.create("a", b"1")
    assert objects.get("a")[0] == b"1"


@pytest.mark.parametrize("fault", [409, 412])
def test_a_conflict_with_another_writer_is_no_failure(objects: Objects, server: S3Server, fault: int) -> None:
    server.faults["PUT"] = [fault]
    assert objects.create("a", b"1") is None  # S3 answers 409 when two write at once: nothing may be there yet
    server.faults["PUT"] = [fault]
    put_whole(objects, "a", b"1")
    assert objects.get("a")[0] == b"1"


def test_a_store_that_stays_away_is_named(objects: Objects, server: S3Server) -> None:
    server.faults = {method: [503] * 20 for method in ("PUT", "GET", "HEAD", "LIST")}
    for ask in (
        lambda: objects.create("a", b"1"),
        lambda: objects.get("a"),
        lambda: objects.head("a"),
        lambda: list(objects.list("a")),
    ):
        with pytest.raises(Unreachable, match=rf"^{URL}: \w+ a failed"):
            ask()
    server.faults = {"GET": [403]}
    with pytest.raises(Unreachable):
        objects.get("a")


def test_a_torn_upload_is_sent_again(objects: Objects, server: S3Server) -> None:
    server.faults["PUT"] = ["torn", "torn"]
    put_whole(objects, "a", b"0123456789")
    assert objects.get("a")[0] == b"0123456789"
    server.faults["PUT"] = ["torn"] * 20
    with pytest.raises(Unreachable, match="10 bytes"):
        put_whole(objects, "b", b"0123456789")


def test_a_write_whose_answer_was_lost_is_found_written(objects: Objects, server: S3Server) -> None:
    server.faults["PUT"] = ["lost"]
    put_whole(objects, "a", b"0123456789")
    assert objects.get("a")[0] == b"0123456789"


class _Careless:
    """Writes whatever the conditions say, as stores do that do not know them."""

    def __init__(self, objects: Objects) -> None:
        self._objects, self.url = objects, objects.url

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objects, name)

    def create(self, name: str, content: bytes) -> str | None:
        self._objects.delete(name)
        return self._objects.create(name, content)

    def replace(self, name: str, content: bytes, etag: str) -> str | None:
        return self.create(name, content)


def test_a_bucket_that_does_not_exist_is_a_mistake(objects: Objects, server: S3Server) -> None:
    server.faults["PUT"] = [404]
    with pytest.raises(UserError, match="there is no bucket 'bucket'"):
        check_conditions(objects)


def test_a_store_that_ignores_conditions_is_refused(objects: Objects, server: S3Server) -> None:
    check_conditions(objects)
    with pytest.raises(Unreachable, match="ignores If-None-Match"):
        check_conditions(_Careless(objects))
    assert not server.objects  # nothing is left behind
    assert open_objects(URL).url == URL


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s4://bucket/a", "names no object store"),
        ("file:///tmp/a", "TRACEFACTORY_HOME"),
        ("/tmp/a", "names no object store"),
        ("s3://", "not of the form s3://bucket/folder"),
        ("s3://key:secret@bucket/a", "not of the form"),
        ("s3://bucket/a?endpoint=x", "not of the form"),
    ],
)
def test_a_url_of_no_object_store_is_a_mistake(url: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        checked_url(url)
    text = f"{raised.value} {raised.value.mistakes[0].hint}"
    assert message in text
    assert "secret" not in text
