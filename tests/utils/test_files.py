import sys

import pytest

from utils.files import printed_to, write_bytes, write_text


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "a.txt"
    write_text(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space left"):
            write_bytes(path, b"new, but the disk is full")
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_prints_go_to_the_terminal_and_to_the_log_and_are_appended(tmp_path, capsys):
    log = tmp_path / "log.txt"
    for line in ("one", "two"):
        with printed_to(log):
            print(line)
            assert sys.stdout.isatty() is False
    print("three")
    assert log.read_text() == "one\ntwo\n"
    assert capsys.readouterr().out == "one\ntwo\nthree\n"
