"""A VMM's own log."""

from __future__ import annotations

from pathlib import Path

from vm_agent.drivers.vmm_log import last_words, read_log, trim_log


def test_a_long_log_is_freed_but_for_its_end(tmp_path: Path) -> None:
    """The VMM goes on writing behind it."""
    path = tmp_path / "vmm.log"
    trim_log(path)
    assert not path.exists()
    with path.open("wb", buffering=0) as log:
        for _ in range(20):
            log.write(b"w" * 200_000 + b"\n")
            trim_log(path)
        log.write(b"panic\n")
        trim_log(path)
    assert path.stat().st_size > 4_000_000
    assert path.stat().st_blocks * 512 < 1_500_000
    assert read_log(path).endswith(b"w" * 60_000 + b"\npanic\n")


def test_the_last_words_fit_in_an_error_message(tmp_path: Path) -> None:
    """Three lines, whatever else is there; no words, and no error, from what is no file."""
    path = tmp_path / "vmm.log"
    assert last_words(path) == ""
    path.write_bytes(b"x" * 5000 + b"\none\r\n two \xff\nthree\n\n")
    assert last_words(path) == "one | two \N{REPLACEMENT CHARACTER} | three"
    path.unlink()
    path.symlink_to("/etc/passwd")
    assert last_words(path) == ""
    trim_log(path)
