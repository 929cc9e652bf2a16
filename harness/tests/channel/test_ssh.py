"""The SSH channel against a real server (paramiko's) whose commands run in a local shell."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import paramiko
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from harness.background import Background
from harness.channel import Completed
from harness.channel.ssh import Ssh
from harness.deadline import Deadline, wait_until
from harness.errors import ChannelLost, CommandTimeout, GuestPanicked, SetupError, WaitTimeout


def _pump(
    read: Callable[[], bytes], write: Callable[[bytes], object], close: Callable[[], None] = lambda: None
) -> threading.Thread:
    def pump() -> None:
        with contextlib.suppress(OSError, EOFError, ValueError, paramiko.SSHException):
            while data := read():
                write(data)
        with contextlib.suppress(OSError):
            close()

    thread = threading.Thread(target=pump, daemon=True)
    thread.start()
    return thread


def new_key(path: Path) -> paramiko.Ed25519Key:
    encoded = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    path.write_bytes(encoded)
    return paramiko.Ed25519Key.from_private_key_file(str(path))


class FakeSshd(paramiko.ServerInterface):
    """An sshd that lets one key in, and runs commands with ``sh -c`` in ``home``."""

    def __init__(self, host_key: paramiko.PKey, client_key: paramiko.PKey, home: Path, port: int = 0) -> None:
        self._host_key, self._client_key, self.home = host_key, client_key, home
        self.connections = 0
        #: Seconds after which it sends its banner.
        self.banner_after_s = 0.0
        #: While it is cleared, log-ins wait.
        self.lets_in = threading.Event()
        self.lets_in.set()
        #: While it is cleared, no command starts.
        self.begins_commands = threading.Event()
        self.begins_commands.set()
        #: While it is cleared, no channel is opened.
        self.opens_channels = threading.Event()
        self.opens_channels.set()
        self.children: list[subprocess.Popen[bytes]] = []
        self.transports: list[paramiko.Transport] = []
        self.server = socket.create_server(("127.0.0.1", port))
        self.port: int = self.server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.server.accept()
                transport = paramiko.Transport(client)
                transport.add_server_key(self._host_key)
                self.transports.append(transport)
                self.connections += 1
                if self.banner_after_s:
                    threading.Timer(self.banner_after_s, self._serve, [transport]).start()
                else:
                    self._serve(transport)

    def _serve(self, transport: paramiko.Transport) -> None:
        # OSError: a client that gave up has reset the connection. The next one is still served.
        with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
            transport.start_server(server=self)

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        self.lets_in.wait(60)
        allowed = username == "root" and key == self._client_key
        return paramiko.common.AUTH_SUCCESSFUL if allowed else paramiko.common.AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        self.opens_channels.wait(60)
        return paramiko.common.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        self.begins_commands.wait(60)
        threading.Thread(target=self._run, args=(channel, command.decode()), daemon=True).start()
        return True

    def _run(self, channel: paramiko.Channel, command: str) -> None:
        child = subprocess.Popen(
            ["sh", "-c", command],
            cwd=self.home,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        self.children.append(child)
        assert child.stdin
        assert child.stdout
        assert child.stderr
        _pump(lambda: channel.recv(65536), child.stdin.write, child.stdin.close)
        pumps = [
            _pump(partial(child.stdout.read, 65536), channel.sendall),
            _pump(partial(child.stderr.read, 65536), channel.sendall_stderr),
        ]
        child.wait()
        for pump in pumps:
            pump.join()
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            channel.send_exit_status(child.returncode & 0xFF)
            channel.shutdown_write()
            channel.close()

    def hang_up(self) -> None:
        for transport in self.transports:
            transport.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.server.shutdown(socket.SHUT_RDWR)  # Wakes the thread in accept().
        self.server.close()
        self.hang_up()
        for child in self.children:
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)


class Keys:
    def __init__(self, folder: Path) -> None:
        self.host = new_key(folder / "host")
        self.client_path = folder / "client"
        self.client = new_key(self.client_path)
        self.host_line = f"ssh-ed25519 {self.host.get_base64()}"


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


@pytest.fixture
def sshd(keys: Keys, tmp_path: Path) -> Iterator[FakeSshd]:
    made = FakeSshd(keys.host, keys.client, tmp_path)
    yield made
    made.close()


@pytest.fixture
def ssh(sshd: FakeSshd, keys: Keys) -> Iterator[Ssh]:
    made = Ssh(sshd.port, client_key=keys.client_path, host_key=keys.host_line, timeout_s=60)
    yield made
    made.close()


def test_a_command_its_outputs_and_its_status(ssh: Ssh) -> None:
    done = ssh.run("echo out; echo err >&2; exit 7", timeout_s=60)
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")


def test_a_command_without_a_subshell(ssh: Ssh) -> None:
    """Only its exit status is returned, also when background processes have written output before."""
    assert ssh.run("echo late; ( sleep 0.2; echo later >&2 ) &", timeout_s=60).returncode == 0
    for status in (0, 3, 0):
        done = ssh.run(
            f"kept=${{kept}}{status}; echo said; echo failed >&2; answer={status}",
            timeout_s=10,
            subshell=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (status, "", "")
    done = ssh.run("echo $kept", timeout_s=60)
    assert (done.returncode, done.stdout) == (0, "030\n")


def test_stdin_is_passed_whole(ssh: Ssh) -> None:
    content = bytes(range(256)) * 4096
    done = ssh.run("wc -c; true", timeout_s=20, stdin=content)
    assert done.stdout.strip() == str(len(content))


def test_much_on_both_streams(ssh: Ssh) -> None:
    script = "head -c 300000 /dev/zero | tr '\\0' o; head -c 300000 /dev/zero | tr '\\0' e >&2"
    done = ssh.run(script, timeout_s=60)
    assert (done.stdout, done.stderr) == ("o" * 300000, "e" * 300000)


def test_one_connection_serves_many_commands(ssh: Ssh, sshd: FakeSshd) -> None:
    assert [ssh.run(f"echo {n}", timeout_s=60).stdout for n in range(3)] == ["0\n", "1\n", "2\n"]
    assert sshd.connections == 1


def test_commands_share_a_shell_and_nothing_in_it(ssh: Ssh, sshd: FakeSshd, tmp_path: Path) -> None:
    ssh.run("cd /; umask 077; left=behind; exec 2>&-; exit 3", timeout_s=60)
    assert ssh.run("pwd; echo $left; echo seen >&2", timeout_s=60).stdout == f"{tmp_path}\n\n"
    assert ssh.run("if", timeout_s=60).returncode == 2
    assert ssh.run('cat; echo "it\'s\nover"', timeout_s=60).stdout == "it's\nover\n"
    assert len(sshd.children) == 1


def test_two_commands_at_once(ssh: Ssh, tmp_path: Path) -> None:
    first = Background(lambda: ssh.run(f"while ! test -e {tmp_path}/go; do :; done; echo 1", timeout_s=60))
    wait_until(lambda: bool(ssh._running), what="the first command to run", timeout_s=60)
    assert ssh.run(f"echo 2; touch {tmp_path}/go", timeout_s=60).stdout == "2\n"
    done = first.wait(timeout_s=60)
    assert isinstance(done, Completed)
    assert done.stdout == "1\n"


def test_late_output_is_not_attributed_to_the_next_command(ssh: Ssh, tmp_path: Path) -> None:
    """Output of a background process of an earlier command."""
    script = f"(while ! test -e {tmp_path}/go; do :; done; echo late; echo late >&2; touch {tmp_path}/said) &"
    assert ssh.run(script, timeout_s=60).stdout == ""
    (tmp_path / "go").touch()
    wait_until((tmp_path / "said").exists, what="the late output", timeout_s=60)
    done = ssh.run("echo out; echo err >&2", timeout_s=60)
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


def test_a_shell_that_is_killed(ssh: Ssh, sshd: FakeSshd) -> None:
    with pytest.raises(ChannelLost, match=r"broke during 'kill -9 ..': the connection ended"):
        ssh.run("kill -9 $$", timeout_s=60)
    assert ssh.run("echo again", timeout_s=60).stdout == "again\n"


def test_after_a_timeout_the_next_command_gets_a_connection_of_its_own(ssh: Ssh, sshd: FakeSshd) -> None:
    ssh.run("true", timeout_s=60)  # Starts a shell, so that the command times out and not its channel.
    with pytest.raises(CommandTimeout, match=r"^ssh: 'sleep 30' did not end within 0\.2 s"):
        ssh.run("sleep 30", timeout_s=0.2)
    assert ssh.run("echo again", timeout_s=60).stdout == "again\n"
    assert sshd.connections == 2


def test_a_channel_that_opens_too_late(ssh: Ssh, sshd: FakeSshd) -> None:
    sshd.opens_channels.clear()
    with pytest.raises(ChannelLost, match=r"^the SSH connection to the guest broke during 'true'"):
        ssh.run("true", timeout_s=0.2)
    sshd.opens_channels.set()
    assert ssh.run("echo again", timeout_s=60).stdout == "again\n"
    assert sshd.connections == 2


def test_a_command_that_the_guest_does_not_start(
    ssh: Ssh, sshd: FakeSshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """paramiko alone would wait for the answer to "exec" without a timeout."""
    sshd.begins_commands.clear()
    opened, open_ = threading.Event(), ssh._open

    def late(deadline: Deadline) -> paramiko.Channel:
        """Open the channel in any case, so that only the answer to "exec" times out."""
        channel = open_(Deadline.after(60))
        opened.set()
        wait_until(lambda: deadline.expired, what="the command's deadline", timeout_s=60)
        return channel

    monkeypatch.setattr(ssh, "_open", late)
    with pytest.raises(ChannelLost, match=r"broke during 'true': its sshd did not answer within 0.2 s"):
        ssh.run("true", timeout_s=0.2)
    assert opened.is_set()
    monkeypatch.undo()
    sshd.begins_commands.set()
    assert ssh.run("echo again", timeout_s=60).stdout == "again\n"


def test_the_watch_ends_a_command_that_does_not_start(sshd: FakeSshd, keys: Keys) -> None:
    def watch() -> None:
        if not sshd.begins_commands.is_set():
            raise GuestPanicked("Kernel panic - not syncing")

    ssh = Ssh(sshd.port, client_key=keys.client_path, host_key=keys.host_line, timeout_s=60, watch=watch)
    sshd.begins_commands.clear()
    with pytest.raises(GuestPanicked):
        ssh.run("true", timeout_s=60)
    sshd.begins_commands.set()
    ssh.close()


def test_a_command_after_one_that_the_watch_ended(sshd: FakeSshd, keys: Keys) -> None:
    alarm = threading.Event()

    def watch() -> None:
        if alarm.is_set():
            raise GuestPanicked("Kernel panic - not syncing")

    ssh = Ssh(sshd.port, client_key=keys.client_path, host_key=keys.host_line, timeout_s=60, watch=watch)
    assert ssh.run("true", timeout_s=60).returncode == 0
    alarm.set()
    with pytest.raises(GuestPanicked):
        ssh.run("sleep 30", timeout_s=60)
    alarm.clear()
    assert ssh.run("echo again", timeout_s=60).stdout == "again\n"
    ssh.close()


def test_close_ends_a_command_that_is_reconnecting(ssh: Ssh, sshd: FakeSshd) -> None:
    """The command does not run, and its new connection is closed."""
    ssh.run("true", timeout_s=60)
    with pytest.raises(CommandTimeout):
        ssh.run("sleep 30", timeout_s=0.2)
    sshd.lets_in.clear()
    command = Background(lambda: ssh.run("true", timeout_s=60))
    wait_until(lambda: sshd.connections == 2, what="it to reconnect", timeout_s=60)
    ssh.close()
    sshd.lets_in.set()
    with pytest.raises(ChannelLost, match="the SSH connection to the guest was closed"):
        command.wait(timeout_s=60)
    wait_until(lambda: not any(t.is_active() for t in sshd.transports), what="no connection", timeout_s=60)
    assert len(sshd.children) == 1


def test_close_while_a_new_connection_is_taken_over(ssh: Ssh, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = ssh._connect

    def connect_and_close() -> paramiko.Transport:
        made = connect()
        ssh.close()
        return made

    ssh._transport.close()
    monkeypatch.setattr(ssh, "_connect", connect_and_close)
    with pytest.raises(ChannelLost, match="the SSH connection to the guest was closed"):
        ssh.run("true", timeout_s=60)
    assert not ssh._transport.is_active()


def test_a_call_that_ends_while_the_waiting_thread_does_not_run(
    ssh: Ssh, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = False

    class Working:
        def __init__(self, _: object) -> None:
            pass

        def wait(self, *, timeout_s: float) -> str:
            if not ended:
                raise WaitTimeout("the call", last=None, elapsed_s=timeout_s)
            return "done"

    class Expires(Deadline):
        """It expires when it is asked; the call has ended just before."""

        @property
        def expired(self) -> bool:
            nonlocal ended
            ended = True
            return True

    monkeypatch.setattr("harness.channel.ssh.Background", Working)
    assert ssh._watched(lambda: "not called", Expires.after(0)) == "done"


def test_a_connection_that_drops_in_a_command(ssh: Ssh, sshd: FakeSshd, tmp_path: Path) -> None:
    command = Background(lambda: ssh.run(f"touch {tmp_path}/begun; sleep 30", timeout_s=60))
    wait_until((tmp_path / "begun").exists, what="the command to run", timeout_s=60)
    sshd.hang_up()
    with pytest.raises(ChannelLost, match=r"^the SSH connection to the guest broke during 'touch"):
        command.wait(timeout_s=60)
    assert ssh.run("echo again", timeout_s=60).stdout == "again\n"
    assert sshd.connections == 2


def test_a_connection_that_is_closed_under_a_command(ssh: Ssh, tmp_path: Path) -> None:
    command = Background(lambda: ssh.run(f"touch {tmp_path}/begun; sleep 600", timeout_s=600))
    wait_until((tmp_path / "begun").exists, what="the command to run", timeout_s=60)
    ssh.close()
    with pytest.raises(ChannelLost, match="the connection ended"):
        command.wait(timeout_s=60)


def test_the_watch_ends_a_command(sshd: FakeSshd, keys: Keys) -> None:
    panicked = threading.Event()

    def watch() -> None:
        if panicked.is_set():
            raise GuestPanicked("Kernel panic - not syncing")

    ssh = Ssh(sshd.port, client_key=keys.client_path, host_key=keys.host_line, timeout_s=60, watch=watch)
    threading.Timer(0.2, panicked.set).start()
    with pytest.raises(GuestPanicked):
        ssh.run("sleep 30", timeout_s=60)
    ssh.close()


def test_a_guest_with_another_host_key(sshd: FakeSshd, keys: Keys, tmp_path: Path) -> None:
    other = new_key(tmp_path / "other")
    line = f"ssh-ed25519 {other.get_base64()}"
    with pytest.raises(ChannelLost, match=r"is not this guest: its host key is SHA256:.*, expected SHA256:"):
        Ssh(sshd.port, client_key=keys.client_path, host_key=line, timeout_s=60)


def test_a_refused_key_is_tried_once(sshd: FakeSshd, keys: Keys, tmp_path: Path) -> None:
    new_key(tmp_path / "other")
    with pytest.raises(ChannelLost, match="the guest's sshd refused the client key"):
        Ssh(sshd.port, client_key=tmp_path / "other", host_key=keys.host_line, timeout_s=60)
    assert sshd.connections == 1


def test_nobody_listens(keys: Keys) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ChannelLost, match=rf"did not answer on SSH \(127.0.0.1:{port}\) within .*refused"):
        Ssh(port, client_key=keys.client_path, host_key=keys.host_line, timeout_s=0.3)


def test_a_listener_that_says_nothing(keys: Keys) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as mute,
        pytest.raises(ChannelLost, match=r"did not answer on SSH .*: waited 0\.[1-9] s for its banner"),
    ):
        Ssh(mute.getsockname()[1], client_key=keys.client_path, host_key=keys.host_line, timeout_s=0.5)


def test_a_wait_that_ends_late_names_what_it_waited_for(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy host: not paramiko's own timeout, which begins as early."""
    sleep = time.sleep
    monkeypatch.setattr("harness.deadline.time.sleep", lambda seconds: sleep(seconds + 0.15))
    with (
        socket.create_server(("127.0.0.1", 0)) as mute,
        pytest.raises(ChannelLost, match=r"did not answer on SSH .*: waited [\d.]+ s for its banner"),
    ):
        Ssh(mute.getsockname()[1], client_key=keys.client_path, host_key=keys.host_line, timeout_s=0.1)


def test_a_slow_guest_gets_longer_for_its_banner_each_time(
    sshd: FakeSshd, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest that always needs longer than the first attempt allows answers a later one."""
    monkeypatch.setattr("harness.channel.ssh._BANNER_S", 0.01)
    sshd.banner_after_s = 0.2
    ssh = Ssh(sshd.port, client_key=keys.client_path, host_key=keys.host_line, timeout_s=60)
    assert ssh.run("echo up", timeout_s=60).stdout == "up\n"
    assert sshd.connections > 1
    ssh.close()


def test_a_guest_that_comes_up_late_is_waited_for(sshd: FakeSshd, keys: Keys) -> None:
    sshd.server.close()
    late: list[FakeSshd] = []

    def come_up() -> None:
        late.append(FakeSshd(keys.host, keys.client, sshd.home, sshd.port))

    timer = threading.Timer(0.5, come_up)
    timer.start()
    ssh = Ssh(sshd.port, client_key=keys.client_path, host_key=keys.host_line, timeout_s=60)
    assert ssh.run("echo up", timeout_s=60).stdout == "up\n"
    ssh.close()
    timer.join()
    late[0].close()


@pytest.mark.parametrize("content", [None, b"", b"not a key"])
def test_a_private_key_that_cannot_be_read(keys: Keys, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "bad"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SetupError, match=f"cannot read the SSH key {path}"):
        Ssh(1, client_key=path, host_key=keys.host_line, timeout_s=1)
