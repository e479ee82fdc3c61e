"""What a path means."""

from __future__ import annotations

import pytest

from ingress.routes import compile_routes, is_pattern
from supervisor.settings import RouteSettings

ROUTES = compile_routes(
    [
        RouteSettings(path="/a"),
        RouteSettings(path="/files/*", upstream="/up"),
        RouteSettings(path="/jobs/{id}/x.y"),
        RouteSettings(path="/jobs/*"),
        RouteSettings(path="/jobs/best"),
    ]
)


@pytest.mark.parametrize(
    ("path", "route"),
    [
        (b"/a", "/a"),
        (b"/a/", None),
        (b"/files/", "/files/*"),
        (b"/files/a/b?", "/files/*"),
        (b"/files", None),
        (b"/jobs/7/x.y", "/jobs/{id}/x.y"),
        (b"/jobs/7/xzy", "/jobs/*"),
        (b"/jobs//x.y", "/jobs/*"),
        (b"/jobs/best", "/jobs/best"),
        (b"/other", None),
        (b"//127.0.0.1:1/jobs/x", None),
        (b"/files/../a", None),
        (b"/files/%2E%2e/a", None),
        (b"/files/..\\a", None),
    ],
)
def test_what_a_path_means(path: bytes, route: str | None) -> None:
    found = ROUTES.find(path)
    assert (found and found.path) == route


def test_what_goes_on_to_the_model_server() -> None:
    found = [ROUTES.find(path) for path in (b"/a", b"/files/x", b"/jobs/7/x.y")]
    assert [route and route.target for route in found] == ["/a", "/up", ""]
    assert ROUTES.names == ["/a", "/files/*", "/jobs/{id}/x.y", "/jobs/*", "/jobs/best"]
    assert [is_pattern(path) for path in ("/a", "/a/*", "/a*", "/{a}")] == [
        False, True, False, True,
    ]  # fmt: skip


def test_without_patterns_nothing_is_searched() -> None:
    assert compile_routes([RouteSettings(path="/a")]).find(b"/b") is None
