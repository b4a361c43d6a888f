"""The files of the page: their headers, their caching, and that they are all there is."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from asgi import app_for, ask

from llamanet.gateway.page import STATIC

ROOT = Path(__file__).parents[2]
FILES = sorted(path.name for path in STATIC.iterdir())


@pytest.fixture
def app():
    class Nothing:
        statistics = None

    return app_for(Nothing())[0]


@pytest.mark.parametrize("path", ["/", *(f"/static/{name}" for name in FILES)])
async def test_each_file_comes_with_the_policy_and_is_kept_until_it_changes(app, path):
    got = await ask(app, "GET", path)
    assert got.status == 200
    assert got.body
    policy = got.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert got.headers["x-content-type-options"] == "nosniff"
    assert got.headers["referrer-policy"] == "no-referrer"
    assert got.headers["cache-control"] == "no-cache"
    again = await ask(app, "GET", path, if_none_match=got.headers["etag"])
    assert (again.status, again.body) == (304, b"")
    head = await ask(app, "HEAD", path)
    assert (head.status, head.headers["content-length"]) == (200, got.headers["content-length"])


async def test_types_of_files(app):
    types = {name: (await ask(app, "GET", f"/static/{name}")).headers["content-type"] for name in FILES}
    wanted = {"html": "text/html", "css": "text/css", "js": "javascript", "svg": "image/svg+xml"}
    for name, told in types.items():
        assert wanted[name.rpartition(".")[2]] in told


@pytest.mark.parametrize(
    "path",
    [
        "/static/",
        "/static/../page.py",
        "/static/%2e%2e/page.py",
        "/static//etc/passwd",
        "/static/nothing.js",
        "/nothing",
    ],
)
async def test_there_is_nothing_else(app, path):
    assert (await ask(app, "GET", path)).status == 404


async def test_files_are_only_read(app):
    assert (await ask(app, "POST", "/static/main.js")).status == 405
    assert (await ask(app, "DELETE", "/")).status == 405


def test_the_page_uses_its_own_files_only_and_all_of_them():
    sources = {name: (STATIC / name).read_text() for name in FILES}
    used = {"index.html"}
    for name, source in sources.items():
        for address in re.findall(r"https?://[^\s\"'`)]+", source):
            assert address == "http://www.w3.org/2000/svg", (name, address)
        used |= set(re.findall(r"(?:static|\.)/([\w.]+\.(?:js|css|svg))", source))
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", source), (
            name
        )
        assert not re.search(r"<script>|<style|\son\w+=|\sstyle=|javascript:", source), name
    assert used == set(FILES)


def test_the_wheel_has_the_files(tmp_path):
    hatchling = pytest.importorskip("hatchling", reason="hatchling, which builds the wheel, is not installed")
    assert hatchling
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"llamanet/gateway/static/{name}" for name in FILES} <= set(names)
