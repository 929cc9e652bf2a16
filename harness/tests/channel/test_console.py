"""The console channel, against a local shell on a terminal."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import pty
import select
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.channel import Completed
from harness.channel import console as console_module
from harness.channel.console import Console, KernelLog
from harness.deadline import Deadline
from harness.errors import ChannelLost, CommandTimeout, GuestPanicked


class FakeSerial:
    """A unix socket connected to ``sh`` on a pseudo-terminal, with echo, prompt, 4 KiB lines and Ctrl-C."""

    def __init__(self, path: Path) -> None:
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen(1)
        self._main, terminal = pty.openpty()
        self.shell = subprocess.Popen(
            ["sh", "-i"],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
            # A session's leader gets its terminal by opening it (man 4 tty_ioctl).
            preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),
        )
        os.close(terminal)
        self._thread = threading.Thread(target=self._relay, daemon=True)
        self._thread.start()

    def say(self, text: str) -> None:
        """Something that is printed on the line, uncalled for."""
        self._client.sendall(text.encode())

    def _relay(self) -> None:
        with contextlib.suppress(OSError):
            self._client, _ = self._server.accept()
            while True:
                client = self._client.fileno()
                readable, _, _ = select.select([client, self._main], [], [])
                if self._main in readable:
                    self._client.sendall(os.read(self._main, 65536))
                if client in readable:
                    data = self._client.recv(65536)
                    if not data:
                        return
                    os.write(self._main, data)

    def hang_up(self) -> None:
        self._client.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.shell.kill()
        self.shell.wait()
        self._server.close()
        os.close(self._main)


@pytest.fixture
def serial(tmp_path: Path) -> Iterator[FakeSerial]:
    made = FakeSerial(tmp_path / "console.sock")
    yield made
    made.close()


@pytest.fixture
def console(serial: FakeSerial, tmp_path: Path) -> Iterator[Console]:
    assert serial.shell.pid
    made = Console(tmp_path / "console.sock")
    made.wait_ready(timeout_s=60)
    yield made
    made.close()


def test_a_command_its_outputs_and_its_status(console: Console) -> None:
    done = console.run("echo out; echo err >&2; exit 7", timeout_s=60)
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")


def test_output_that_a_terminal_would_change(console: Console) -> None:
    done = console.run(r"printf 'a\r\nb\tc\001\033[2J no newline at the end'", timeout_s=60)
    assert done.stdout == "a\r\nb\tc\x01\x1b[2J no newline at the end"


def test_a_command_longer_than_a_line_of_a_terminal(console: Console) -> None:
    long = "x" * 9000
    assert console.run(f"echo {long} | wc -c", timeout_s=60).stdout.strip() == "9001"


def test_stdin(console: Console) -> None:
    content = bytes(range(256)) * 20
    done = console.run("od -An -v -tu1 | tr -s ' \\n' ' '", timeout_s=60, stdin=content)
    assert bytes(int(number) for number in done.stdout.split()) == content


def test_a_command_that_prints_what_looks_like_an_answer(console: Console) -> None:
    done = console.run("cat $0 2>/dev/null; set; history 2>/dev/null; echo '<abc:0'; exit 3", timeout_s=60)
    assert done.returncode == 3
    assert "<abc:0" in done.stdout


def test_output_of_other_programs_is_not_taken_for_an_answer(console: Console, serial: FakeSerial) -> None:
    serial.say("\r\n[ 12.3] some kernel line\r\n<deadbeef:0\r\n")
    assert console.run("echo mine", timeout_s=60).stdout == "mine\n"


def test_after_a_timeout_the_shell_can_be_used_again(console: Console) -> None:
    with pytest.raises(CommandTimeout, match=r"^console: 'sleep 30' did not end within 0\.5 s"):
        console.run("sleep 30", timeout_s=0.5)
    for number in range(3):
        assert console.run(f"echo {number}", timeout_s=60).stdout == f"{number}\n"


def test_a_slow_shell_gets_longer_for_each_probe(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell that always needs longer than the first probe allows answers a later one."""
    allowed_s: list[float] = []

    def run(command: str, *, timeout_s: float) -> Completed:
        allowed_s.append(timeout_s)
        if timeout_s < 5:
            raise CommandTimeout("console", command, timeout_s, "", "")
        return Completed(command, 0, "", "")

    monkeypatch.setattr(console, "run", run)
    console.wait_ready(timeout_s=1)
    assert allowed_s == [2.0, 4.0, 8.0]


def test_output_that_comes_while_the_waiting_thread_does_not_run(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = False

    class Expires(Deadline):
        """It expires when it is asked; the output has come just before."""

        @property
        def expired(self) -> bool:
            nonlocal printed
            printed = True
            return True

    def expect(_: list[object], *, timeout: float) -> int:
        assert timeout >= 0
        return 0 if printed else 1

    monkeypatch.setattr(console._shell, "expect", expect)
    console._expect("mark", Expires.after(0))
    assert printed


def test_the_watch_ends_a_command(serial: FakeSerial, tmp_path: Path) -> None:
    assert serial.shell.pid
    panicked = threading.Event()

    def watch() -> None:
        if panicked.is_set():
            raise GuestPanicked("Kernel panic - not syncing")

    console = Console(tmp_path / "console.sock", watch=watch)
    threading.Timer(0.2, panicked.set).start()
    with pytest.raises(GuestPanicked):
        console.run("sleep 30", timeout_s=60)
    panicked.clear()
    assert console.run("echo free", timeout_s=60).stdout == "free\n"
    console.close()


def test_the_console_breaks(console: Console, serial: FakeSerial) -> None:
    threading.Timer(0.3, serial.hang_up).start()
    with pytest.raises(ChannelLost, match=r"^the console broke during 'sleep 30'"):
        console.run("sleep 30", timeout_s=60)


def test_no_socket(tmp_path: Path) -> None:
    with pytest.raises(ChannelLost, match=r"cannot open the console .*absent: No such file"):
        Console(tmp_path / "absent")


def test_a_shell_that_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_module, "_PROBE_S", 0.05)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "mute"))
        server.listen(1)
        console = Console(tmp_path / "mute")
        with pytest.raises(ChannelLost, match="console did not answer within"):
            console.wait_ready(timeout_s=0.2)
        console.close()


class TestKernelLog:
    def test_a_log_that_does_not_exist_yet_is_empty(self, tmp_path: Path) -> None:
        log = KernelLog(tmp_path / "absent")
        assert (log.text(), log.tail(3), log.panic()) == ("", [], None)
        log.watch()

    def test_a_character_that_is_read_while_it_is_written(self, tmp_path: Path) -> None:
        log, content = KernelLog(tmp_path / "log"), "é\n".encode()
        for end in range(1, len(content) + 1):
            log.path.write_bytes(content[:end])
            log.text()
        assert log.text() == "é\n"

    def test_many_threads_read_every_line_once(self, tmp_path: Path) -> None:
        log = KernelLog(tmp_path / "log")
        written = [f"[{number}] a line\n" for number in range(2000)]
        ended = threading.Event()

        def watch() -> None:
            while not ended.is_set():
                log.watch()

        with concurrent.futures.ThreadPoolExecutor(4) as pool, log.path.open("w", buffering=1) as file:
            for _ in range(4):
                pool.submit(watch)
            file.writelines(written)
            ended.set()
        assert log.text() == "".join(written)

    def test_a_forgiven_panic_is_not_found_again(self, tmp_path: Path) -> None:
        path = tmp_path / "log"
        log = KernelLog(path)
        path.write_text("[1] Kernel panic - not syncing: sysrq triggered crash\n")
        assert log.panic() == "Kernel panic - not syncing: sysrq triggered crash"
        log.forgive_panic()
        with path.open("a") as file:
            file.write("[2] ---[ end Kernel panic - not syncing: sysrq triggered crash ]---\n")
        log.watch()
        with path.open("a") as file:
            file.write("[9] Kernel panic - not syncing: another\n")
        assert log.panic() == "Kernel panic - not syncing: another"

    def test_a_panic_that_is_still_being_printed_is_not_found_twice(self, tmp_path: Path) -> None:
        path = tmp_path / "log"
        log = KernelLog(path)
        path.write_text("[2] Kernel panic - not syncing: sysrq trig")
        assert log.panic() is None
        with path.open("a") as file:
            file.write("gered crash\r\n[2] CP")
        assert log.panic() == "Kernel panic - not syncing: sysrq triggered crash"
        log.forgive_panic()
        with path.open("a") as file:
            file.write("U: 0 PID: 153\r\n")
        log.watch()

    def test_a_panic_that_arrives_in_two_pieces(self, tmp_path: Path) -> None:
        path = tmp_path / "log"
        log = KernelLog(path)
        path.write_text("[1] fine\n[2] Kernel pan")
        log.watch("source")
        with path.open("a") as file:
            file.write("ic - not syncing: Fatal exception\r\n")
        with pytest.raises(
            GuestPanicked, match=r"^the guest of 'source': Kernel panic - not syncing: Fatal exception"
        ) as caught:
            log.watch("source")
        assert "[1] fine" in caught.value.details


def test_a_guest_without_base64(console: Console) -> None:
    """As with busybox 1.30: the outputs cannot be separated, which is an error."""
    console._send("base64() { echo 'sh: base64: not found'; }")
    with pytest.raises(
        ChannelLost, match="expected base64 from the guest's console, got 'sh: base64: not found'"
    ):
        console.run("true", timeout_s=60)
