"""Key files: what they may say, who is found by a key, and what a new file changes."""

import hashlib
import logging
import os
import stat

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from llamanet.errors import UserError
from llamanet.gateway.keys import Keys, follow_keys, load_keys, parse_keys
from llamanet.gateway.quota import Limits

ALICE, BOB = "sk-alice-0123456789abcdef", "sk-bob-0123456789abcdefgh"


def write(path, content, mode=0o600):
    path.write_text(content)
    path.chmod(mode)
    return path


def test_a_file_has_labels_keys_hashes_limits_and_comments():
    hashed = hashlib.sha256(BOB.encode()).hexdigest()
    alice, bob = parse_keys(
        f"# who may ask\n\nalice {ALICE} rpm=60 concurrent=4 # until May\n  bob\tsha256:{hashed.upper()}  tpm=1000\n"
    )
    assert (alice.label, alice.limits) == ("alice", Limits(rpm=60, concurrent=4))
    assert (bob.label, bob.limits) == ("bob", Limits(tpm=1000))
    keys = Keys((alice, bob))
    assert keys.find(ALICE)[0] is alice
    assert keys.find(BOB)[0] is bob
    assert keys.find(f"sha256:{hashed}") is None
    assert keys.find(hashed) is None
    assert keys.find("") is None


def test_a_key_may_have_a_hash_sign_in_it():
    assert Keys(parse_keys("a one#0123456789abcdef")).find("one#0123456789abcdef")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "it holds no key"),
        ("# nothing", "it holds no key"),
        (ALICE, "line 1: a line is a label"),
        (f"a=b {ALICE}", "line 1: a line is a label"),
        (f"\nalice {ALICE}\nalice {BOB}", "line 3: 'alice' has a key already"),
        (f"alice {ALICE}\nbob {ALICE}", "line 2: the key of 'bob' is another one's too"),
        (f"alice {ALICE} rpm", "rpm must be a whole number from 1"),
        (f"alice {ALICE} rpm=0", "rpm must be a whole number from 1"),
        (f"alice {ALICE} rpm=-1", "rpm must be a whole number from 1"),
        (f"alice {ALICE} rpm=1 rpm=2", "once each, not 'rpm'"),
        (f"alice {ALICE} speed=1", "not 'speed'"),
        ("alice sha256:abc", "64 hexadecimal digits"),
    ],
)
def test_a_wrong_line_is_told_without_its_key(content, complaint):
    with pytest.raises(UserError) as caught:
        parse_keys(content)
    assert complaint in str(caught.value)
    assert ALICE not in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text())
def test_any_text_is_keys_or_a_user_error(content):
    try:
        assert parse_keys(content)
    except UserError as error:
        told = str(error)
        assert "\n" not in told


@given(st.text())
def test_only_the_very_key_is_found(presented):
    assert (Keys(parse_keys(f"alice {ALICE}")).find(presented) is not None) == (presented == ALICE)


def test_files_that_cannot_be_read_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the API key file .*absent: No such file"):
        load_keys(tmp_path / "absent")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is no text"):
        load_keys(tmp_path / "binary")


def test_warned_is_of_a_file_that_everybody_may_read_and_of_short_keys(tmp_path, caplog):
    load_keys(write(tmp_path / "keys", f"alice {ALICE}\n", 0o640))
    assert not caplog.records
    load_keys(write(tmp_path / "keys", "alice short\n", 0o644))
    assert [record.getMessage().partition(";")[0] for record in caplog.records] == [
        f"The API key file {tmp_path / 'keys'} is open to everybody (mode 0644)",
        "The API key of alice has only 5 characters",
    ]
    assert stat.S_IMODE(os.stat(tmp_path / "keys").st_mode) == 0o644


async def test_a_changed_file_is_read_again_and_a_broken_one_is_not_taken(tmp_path, caplog, autojump_clock, nursery):
    caplog.set_level(logging.INFO)
    path = write(tmp_path / "keys", f"alice {ALICE} rpm=2\n")
    keys = Keys(load_keys(path))
    nursery.start_soon(follow_keys, path, keys)
    await trio.sleep(0.5)
    alice, quota = keys.find(ALICE)
    quota.begin(alice.limits, trio.current_time())

    write(path, f"alice {ALICE} rpm=5\nbob {BOB}\n")
    await trio.sleep(1)
    assert keys.find(BOB)
    alice, kept = keys.find(ALICE)
    assert alice.limits.rpm == 5
    assert kept is quota

    for broken in ("alice\n", None):
        caplog.clear()
        path.unlink() if broken is None else write(path, broken)
        await trio.sleep(10)
        (record,) = caplog.records
        assert record.levelname == "ERROR"
        assert "the 2 keys that were read before stay in force" in record.getMessage()
        assert keys.find(ALICE)
        assert keys.find(BOB)

    write(path, f"bob {BOB}\n")
    await trio.sleep(1)
    assert keys.find(ALICE) is None
    assert keys.find(BOB)
