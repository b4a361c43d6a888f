import logging

import pytest

from llamanet.models.progress import LogReport, size_text


def test_the_log_hears_of_what_takes_long_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    now = 0.0
    report = LogReport(lambda: now)
    for tenth in range(301):
        now = tenth / 10
        report("Hashing a", tenth, 300)
        report("Hashing b", min(tenth, 5), 5)
    assert caplog.messages == ["Hashing a: 3 %", "Hashing a: 36 %", "Hashing a: 70 %"]


def test_sizes() -> None:
    assert [size_text(size) for size in (0, 1023, 1024, 98 * 2**20, 4.12 * 2**30, 3 * 2**40)] == [
        *("0 B", "1023 B", "1.0 KiB", "98.0 MiB", "4.1 GiB", "3.0 TiB")
    ]
