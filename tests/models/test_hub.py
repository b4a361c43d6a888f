"""huggingface_hub itself, against a server that speaks the hub's protocol."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import FakeHub

from llamanet.errors import ModelFileError, UserError
from llamanet.models import hub as hub_module
from llamanet.models import library
from llamanet.models.digest import known_digest
from llamanet.models.hub import pull
from llamanet.models.library import find_local_model, find_model, local_models, newest_model
from llamanet.models.progress import silent
from llamanet.models.source import HubSource

REPO = "owner/repo-GGUF"
DATA = bytes(range(256)) * 4096


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """The hub that huggingface_hub asks, with an empty cache."""
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    server = FakeHub()
    server.files[REPO] = {"README.md": b"hello", "tiny-Q4_K_M.gguf": DATA, "tiny-Q8_0.gguf": DATA[:5000]}
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield server
    close_session()
    server.close()


@pytest.fixture
def digests(tmp_path: Path) -> Path:
    return tmp_path / "digests.json"


def test_pulling_verifies_remembers_and_is_found_again(hub: FakeHub, digests: Path) -> None:
    told: list[tuple[str, int, int]] = []
    path = pull(HubSource(REPO), digests, lambda *progress: told.append(progress))
    assert path.read_bytes() == DATA
    assert path.name == "tiny-Q4_K_M.gguf"
    assert ("Pulling tiny-Q4_K_M.gguf", len(DATA), len(DATA)) in told
    assert known_digest([path], digests) == hashlib.sha256(DATA).digest()

    [model] = local_models()
    assert (model.name, model.repo, model.size, model.quant) == ("tiny-Q4_K_M", REPO, len(DATA), "Q4_K_M")
    asked = len(hub.requests)
    for text in (f"hf:{REPO}", f"hf:{REPO}:q4_k_m", f"hf:{REPO}:tiny-Q4_K_M.gguf", "tiny-Q4_K_M"):
        assert find_model(text, digests, silent) == path
    assert len(hub.requests) == asked  # what is here is not asked for
    assert pull(HubSource(REPO), digests, silent) == path
    assert hub.ranges() == [None]


def test_an_interrupted_transfer_is_gone_on_with(hub: FakeHub, digests: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    monkeypatch.setattr(hub_module, "PIECE", 100_000)
    hub.break_after = 310_000

    def interrupt(what: str, done: int, whole: int) -> None:
        if done >= 500_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(HubSource(REPO, "Q4_K_M"), digests, interrupt)
    assert hub.ranges() == [None, "bytes=300000-"]  # the second is huggingface_hub's own retry
    assert local_models() == []
    hub.requests.clear()
    hub.break_after = 50_000
    with pytest.raises(UserError, match=r"the transfer broke off .* pull again to go on"):
        pull(HubSource(REPO, "Q4_K_M"), digests, silent)

    hub.break_after = None
    hub.requests.clear()
    path = pull(HubSource(REPO, "Q4_K_M"), digests, silent)
    [asked] = hub.ranges()
    assert asked is not None
    assert asked == "bytes=400000-"
    assert path.read_bytes() == DATA
    assert not list(path.resolve().parent.glob("*.incomplete"))


def test_little_is_lost_of_what_came(hub: FakeHub, digests: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    hub.break_after = 310_000
    assert pull(HubSource(REPO), digests, silent).read_bytes() == DATA
    starts = [int(asked.removeprefix("bytes=").rstrip("-")) for asked in hub.ranges() if asked]
    assert [start % hub_module.PIECE for start in starts] == [0] * 3
    assert starts[0] > 310_000 - hub_module.PIECE


def test_a_server_that_knows_no_ranges_sends_all_again(hub: FakeHub, digests: Path) -> None:
    blobs = Path(hub_module.cache_dir() or "") / "models--owner--repo-GGUF" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{hashlib.sha256(DATA).hexdigest()}.incomplete").write_bytes(DATA[:1000])
    hub.ignore_range = True
    assert pull(HubSource(REPO), digests, silent).read_bytes() == DATA


def test_a_wrong_checksum_is_refused(hub: FakeHub, digests: Path) -> None:
    hub.corrupt = True
    with pytest.raises(ModelFileError, match="pull it again") as caught:
        pull(HubSource(REPO), digests, silent)
    assert hashlib.sha256(DATA).hexdigest() in str(caught.value)
    assert local_models() == []
    hub.corrupt = False
    assert pull(HubSource(REPO), digests, silent).read_bytes() == DATA
    assert hub.ranges() == [None, None]  # nothing of the damaged one was used


def test_shards_are_pulled_together(hub: FakeHub, digests: Path) -> None:
    names = [f"Q8_0/big-Q8_0-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    hub.files["owner/big"] = {name: name.encode() for name in names}
    path = pull(HubSource("owner/big", "Q8_0"), digests, silent)
    assert path.name == "big-Q8_0-00001-of-00003.gguf"
    [model] = local_models()
    assert (model.name, [file.name for file in model.files]) == ("big-Q8_0", [name[5:] for name in names])
    (model.files[1]).unlink()
    assert local_models() == []
    assert find_model("hf:owner/big", digests, silent) == path  # gets what is missing
    assert len(hub.ranges()) == 3


def test_two_pulled_models_of_one_name_are_told(hub: FakeHub, digests: Path) -> None:
    hub.files["other/repo"] = {"tiny-Q4_K_M.gguf": DATA[:100]}
    pull(HubSource(REPO), digests, silent)
    pull(HubSource("other/repo"), digests, silent)
    with pytest.raises(ModelFileError, match=r"2 pulled .* hf:other/repo:tiny-Q4_K_M, hf:owner/repo-GGUF:tiny-Q4_K_M"):
        find_model("tiny-Q4_K_M", digests, silent)
    with pytest.raises(ModelFileError, match="nothing is neither a file nor a pulled model"):
        find_model("nothing", digests, silent)


def test_another_revision_is_another_model(hub: FakeHub, digests: Path) -> None:
    old, older = "01d" + 37 * "0", "01de4" + 35 * "0"
    hub.revisions[REPO] = {
        "v1": (old, {"tiny-Q4_K_M.gguf": DATA[:2000], "gone-Q8_0.gguf": DATA[:10]}),
        "refs/pr/1": (older, {"tiny-Q4_K_M.gguf": DATA[:1000]}),
    }
    main = pull(HubSource(REPO), digests, silent)
    for revision, size in (("v1", 2000), ("refs/pr/1", 1000), (old, 2000)):
        path = pull(HubSource(REPO, revision=revision), digests, silent)
        assert path.read_bytes() == DATA[:size]
        assert find_model(f"hf:{REPO}@{revision}", digests, silent) == path
        assert find_model(f"hf:{REPO}@{revision}:Q4_K_M", digests, silent) == path
        assert find_local_model(f"hf:{REPO}") == main
    assert find_model(f"hf:{REPO}@v1:gone-Q8_0", digests, silent).name == "gone-Q8_0.gguf"
    assert find_local_model(f"hf:{REPO}@v2") is None
    assert find_local_model(f"hf:{REPO}:gone-Q8_0") is None  # it is not in main
    assert [(model.name, model.revision) for model in local_models()] == [
        ("gone-Q8_0", "v1"),
        ("tiny-Q4_K_M", None),
        ("tiny-Q4_K_M", "refs/pr/1"),
        ("tiny-Q4_K_M", "v1"),
    ]
    with pytest.raises(ModelFileError, match=rf"3 pulled .* hf:{REPO}@v1:tiny-Q4_K_M$"):
        find_model("tiny-Q4_K_M", digests, silent)


def test_a_revision_can_be_all_that_was_pulled(hub: FakeHub, digests: Path) -> None:
    hub.revisions[REPO] = {"v1": ("01d" + 37 * "0", {"tiny-Q4_K_M.gguf": DATA[:2000]})}
    path = pull(HubSource(REPO, revision="v1"), digests, silent)
    assert find_local_model("tiny-Q4_K_M") == path
    assert find_local_model(f"hf:{REPO}") is None
    hub.revisions[REPO] = {"v1": ("02d" + 37 * "0", {"tiny-Q4_K_M.gguf": DATA[:3000]})}  # a branch has moved
    assert find_model(f"hf:{REPO}@v1", digests, silent) == path
    newer = newest_model(HubSource(REPO, revision="v1"), digests, silent)
    assert find_model(f"hf:{REPO}@v1", digests, silent) == newer != path


def test_the_token_is_taken_from_its_usual_places(hub: FakeHub, digests: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.needs_token = "hf_secret"
    with pytest.raises(UserError, match=r"there is no http.*owner/repo-GGUF, or it is private; .* HF_TOKEN"):
        pull(HubSource(REPO), digests, silent)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert pull(HubSource(REPO), digests, silent).read_bytes() == DATA
    assert set(hub.tokens[-3:]) == {"Bearer hf_secret"}


def test_what_the_hub_refuses_is_one_line(hub: FakeHub, digests: Path) -> None:
    def refused(source: HubSource, *says: str) -> None:
        with pytest.raises(UserError) as caught:
            pull(source, digests, silent)
        assert "\n" not in str(caught.value)
        assert all(word in str(caught.value) for word in (str(source), *says)), str(caught.value)

    refused(HubSource("owner/unknown"), f"there is no {hub.url}/owner/unknown", "check the name")
    refused(HubSource(REPO, "Q8_0", "v9"), f"{hub.url}/{REPO} has no revision 'v9'", "a branch, a tag")
    hub.gated = True
    refused(HubSource(REPO), "is gated", f"accept its terms at {hub.url}/{REPO}")
    hub.gated = False
    for status, advice in (
        (401, "check the token"),
        (500, "status 500; try again later"),
        (404, f"is there {hub.url}/{REPO}?"),
    ):
        hub.status = status
        refused(HubSource(REPO), advice)
    hub.status = None
    refused(HubSource("-owner/repo--x"), "is no repository's name")
    assert local_models() == []


def test_an_unreachable_hub_is_one_line_and_what_is_here_is_served(
    hub: FakeHub, digests: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pull(HubSource(REPO), digests, silent)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    assert find_model(f"hf:{REPO}", digests, silent) == path
    assert newest_model(HubSource(REPO), digests, silent) == path
    assert len(hub.requests) == asked
    with pytest.raises(UserError, match="was not pulled yet, and HF_HUB_OFFLINE forbids"):
        find_model(f"hf:{REPO}:Q8_0", digests, silent)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"cannot reach http://127\.0\.0\.1:9 .*check the network"):
        find_model(f"hf:{REPO}:Q8_0", digests, silent)


def test_a_full_disk_is_told_before_pulling(hub: FakeHub, digests: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": hub_module.RESERVE + 5000})
    monkeypatch.setattr(hub_module.shutil, "disk_usage", lambda path: usage)
    pull(HubSource(REPO, "Q8_0"), digests, silent)
    with pytest.raises(UserError, match=r"1\.0 MiB are to be got, and .* has 64\.0 MiB free; make room"):
        pull(HubSource(REPO), digests, silent)
    assert len(hub.ranges()) == 1


def test_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch, digests: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="pip install huggingface_hub"):
        pull(HubSource(REPO), digests, silent)
    assert library.local_models() == []


def command(hub: FakeHub, tmp_path: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "llamanet", *arguments],
        env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "DATA_DIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_command_goes_on_after_it_was_killed(hub: FakeHub, tmp_path: Path) -> None:
    hub.files[REPO]["huge-Q8_0.gguf"] = huge = os.urandom(30 * 2**20)
    hub.break_after = 11 * 2**20
    with command(hub, tmp_path, "pull", f"hf:{REPO}:huge-Q8_0") as pulling:
        deadline = time.monotonic() + 30
        while not any("huge" in path for method, path, _ in hub.requests if method == "GET"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        part = tmp_path / "hub/models--owner--repo-GGUF/blobs" / f"{hashlib.sha256(huge).hexdigest()}.incomplete"
        while not part.exists() or part.stat().st_size <= 11 * 2**20 - hub_module.PIECE:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        pulling.send_signal(signal.SIGKILL)
    hub.break_after = None
    hub.requests.clear()
    with command(hub, tmp_path, "pull", f"hf:{REPO}:huge-Q8_0") as pulling:
        out, err = pulling.communicate(timeout=60)
    assert (pulling.returncode, err) == (0, "")
    assert Path(out.strip()).read_bytes() == huge
    [asked] = hub.ranges()
    assert asked is not None
    assert int(asked.removeprefix("bytes=").rstrip("-")) > 11 * 2**20 - hub_module.PIECE

    with command(hub, tmp_path, "models", "--local", "--json") as listing:
        [model] = json.loads(listing.communicate(timeout=60)[0])
    assert (model["name"], model["quant"], model["bytes"]) == ("huge-Q8_0", "Q8_0", len(huge))
    assert model["digest"] == hashlib.sha256(huge).hexdigest()
    with command(hub, tmp_path, "pull", "hf:owner/nothing") as pulling:
        out, err = pulling.communicate(timeout=60)
    assert (pulling.returncode, out, err.count("\n")) == (2, "", 1)
