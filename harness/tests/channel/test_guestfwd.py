"""Sessions over a line, against the real server of ``test_ssh``, behind a stand-in for QEMU's network."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import paramiko
import pytest

from harness.background import Background
from harness.channel import Completed, handshake
from harness.channel.guestfwd import GuestfwdSocket, SavedSession
from harness.channel.handshake import GuestfwdTransport
from harness.channel.remote_shell import RemoteShell
from harness.channel.ssh import Ssh
from harness.deadline import Deadline, wait_until
from harness.errors import ChannelLost, CommandTimeout
from harness.tests.channel.test_ssh import FakeSshd, Keys


class Network:
    """Two QEMUs in which one guest may be: whoever connects last talks to its one session with its sshd."""

    def __init__(self, folder: Path, keys: Keys) -> None:
        self.keys, self.sshd = keys, FakeSshd(keys.host, keys.client, folder)
        self.here, self.there = folder / "here.sock", folder / "there.sock"
        self.lost: list[str] = []
        #: Nothing reaches the server any more.
        self.deaf = False
        #: Nothing of what the server says arrives.
        self.mute = False
        #: What reaches the server only with :meth:`deliver`.
        self.held_back = False
        self.late: list[bytes] = []
        self._client: socket.socket | None = None
        self._upstream: socket.socket | None = None
        self._listeners = [self._listen(path) for path in (self.here, self.there)]

    def _listen(self, path: Path) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        listener.listen(1)
        self._start(self._accept, listener)
        return listener

    def _start(self, target: Callable[..., None], *args: object) -> None:
        def run() -> None:
            with contextlib.suppress(OSError):
                target(*args)

        threading.Thread(target=run, daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            client, _ = listener.accept()
            self._client = client
            if self._upstream is None:
                self._upstream = socket.create_connection(("127.0.0.1", self.sshd.port))
                self._start(self._outward, self._upstream)
            self._start(self._inward, client, self._upstream)

    def _inward(self, client: socket.socket, upstream: socket.socket) -> None:
        while data := client.recv(65536):
            if self.held_back:
                self.late.append(data)
            elif not self.deaf:
                upstream.sendall(data)

    def _outward(self, upstream: socket.socket) -> None:
        while data := upstream.recv(65536):
            assert self._client is not None
            if not self.mute:
                self._client.sendall(data)

    def deliver(self) -> None:
        assert self._upstream is not None
        self.held_back = False
        self._upstream.sendall(b"".join(self.late))

    def ssh(self, frozen: SavedSession | None = None, *, timeout_s: float = 60, ahead: bool = False) -> Ssh:
        """A session; ``ahead`` of the machine that has the line."""
        keys, guestfwd = self.keys, GuestfwdSocket(None if ahead else self.here, frozen)
        ssh = Ssh(
            None if ahead else self.sshd.port,
            client_key=keys.client_path,
            host_key=keys.host_line,
            timeout_s=timeout_s,
            guestfwd=guestfwd,
        )
        ssh.guestfwd_lost = self.lost.append
        return ssh

    def close(self) -> None:
        for one in (*self._listeners, self._client, self._upstream):
            if one is not None:
                one.close()
        self.sshd.close()


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    made = Network(tmp_path, Keys(tmp_path))
    yield made
    made.close()


class Patience:
    """When a silent guestfwd is given up: by a condition, so that nothing depends on how fast the machine is.

    :ivar given_up: what came of each attempt to give it up.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.given_up: list[bool] = []
        #: What each command was allowed to wait for a sign of life, in seconds.
        self.allowed_s: list[float] = []

    def ends(self, when: Callable[[], object] = lambda: True) -> None:
        """From now on a command waits no longer than a moment for a sign of life, and then for ``when``."""
        give_up, patience_s = Ssh._give_up_guestfwd, Ssh._patience_s

        def noted(ssh: Ssh, deadline: Deadline) -> float:
            self.allowed_s.append(patience_s(ssh, deadline))
            return self.allowed_s[-1]

        def gated(ssh: Ssh, why: str) -> bool:
            wait_until(lambda: bool(when()), what="the moment to give the line up", timeout_s=60)
            self.given_up.append(give_up(ssh, why))
            return self.given_up[-1]

        self._monkeypatch.setattr(Ssh, "_give_up_guestfwd", gated)
        self._monkeypatch.setattr(Ssh, "_patience_s", noted)
        self._monkeypatch.setattr("harness.channel.ssh._GUESTFWD_OPEN_S", 0.1)


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> Patience:
    return Patience(monkeypatch)


SILENT = ["no answer for 0.1 s"]


def has_run(folder: Path) -> bool:
    """Whether a command ``echo … >> folder/ran`` has."""
    return (folder / "ran").exists() and bool((folder / "ran").read_text())


def answers(ssh: Ssh) -> bool:
    return ssh.run("echo hello", timeout_s=60).stdout == "hello\n"


def test_a_session_over_a_line(network: Network) -> None:
    ssh = network.ssh()
    assert ssh.resumed is True
    assert answers(ssh)
    assert answers(ssh)
    assert network.sshd.connections == 1
    ssh.close()


def test_a_frozen_session_is_gone_on_with(network: Network, tmp_path: Path) -> None:
    """By a client that was not there when it began."""
    network.ssh().freeze().write(tmp_path / "session")
    ssh = network.ssh(SavedSession.read(tmp_path / "session"))
    assert ssh.resumed is True
    assert answers(ssh)
    assert answers(ssh)
    assert network.sshd.connections == 1
    ssh.close()


@pytest.mark.parametrize("what", ["cookie", "key", "received"])
def test_a_session_that_is_not_the_servers_is_given_up(
    network: Network, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The port is used, as if there were no line; it says why."""
    connect = Ssh._connect

    def patiently(ssh: Ssh) -> paramiko.Transport:
        ssh._timeout_s = 60  # What is soon given up is the line alone.
        return connect(ssh)

    frozen = network.ssh().freeze()
    changes = {"cookie": bytes(16), "key": b"\1" * 32, "received": frozen.received[:2]}
    wrong = replace(frozen, **{what: changes[what]})  # type: ignore[arg-type]
    monkeypatch.setattr(Ssh, "_connect", patiently)
    ssh = network.ssh(wrong, timeout_s=3)
    assert isinstance(ssh.resumed, str)
    assert ssh.resumed
    assert answers(ssh)
    assert network.sshd.connections == 2
    ssh.close()


def test_a_session_moves_with_its_guest(network: Network) -> None:
    ssh = network.ssh()
    assert answers(ssh)
    assert ssh.move(network.there, port=network.sshd.port, watch=lambda: None)
    assert answers(ssh)
    assert network.sshd.connections == 1
    ssh.close()


def test_a_session_does_not_move_under_a_command(network: Network, tmp_path: Path) -> None:
    ssh = network.ssh()
    script = f"touch {tmp_path}/begun; while ! test -e {tmp_path}/go; do sleep 0.05; done; echo done"
    command = Background(lambda: ssh.run(script, timeout_s=60))
    wait_until((tmp_path / "begun").exists, what="the command to run", timeout_s=60)
    assert not ssh.move(network.there, port=1, watch=lambda: None)
    assert ssh.resumed == "a command was running"
    (tmp_path / "go").touch()
    done = command.wait(timeout_s=60)
    assert isinstance(done, Completed)
    assert done.stdout == "done\n"
    ssh.close()


def test_a_session_does_not_move_to_where_no_line_is(network: Network, tmp_path: Path) -> None:
    ssh = network.ssh()
    assert not ssh.move(tmp_path / "nothing", port=1, watch=lambda: None)
    assert ssh.resumed == f"cannot open the line {tmp_path}/nothing: No such file or directory"
    assert answers(ssh)
    ssh.close()


def test_a_line_that_falls_silent(network: Network, patience: Patience) -> None:
    """No command has begun then: a connection of its own takes it, and all further ones."""
    ssh = network.ssh()
    assert answers(ssh)
    network.deaf = True
    patience.ends()
    assert answers(ssh)
    assert answers(ssh)
    assert network.sshd.connections == 2
    assert network.lost == SILENT
    assert not ssh.move(network.there, port=network.sshd.port, watch=lambda: None)
    ssh.close()


def test_a_line_that_falls_silent_while_another_command_runs(
    network: Network, patience: Patience, tmp_path: Path
) -> None:
    """The new command has no shell to itself, and needs a channel of its own; it is not the line's end."""
    ssh = network.ssh()
    first = Background(lambda: ssh.run(f"touch {tmp_path}/begun; sleep 600", timeout_s=600))
    wait_until((tmp_path / "begun").exists, what="the first command to run", timeout_s=60)
    network.deaf = True
    patience.ends()
    # The first is paramiko's own; the second is ours, where paramiko's thread comes too late with it.
    why = "(Timeout opening channel|its sshd did not answer within)"
    with pytest.raises(ChannelLost, match=rf"broke during 'true': {why}"):
        ssh.run("true", timeout_s=0.5)
    assert not network.lost
    ssh.close()
    with pytest.raises(ChannelLost):
        first.wait()


def test_a_command_inside_the_shell_is_repeated(network: Network, patience: Patience, tmp_path: Path) -> None:
    """It may run twice, which is why nothing tells whether it has."""
    ssh = network.ssh()
    assert answers(ssh)
    network.mute = True
    patience.ends(lambda: has_run(tmp_path))
    assert ssh.run(f"echo again >> {tmp_path}/ran; answer=0", timeout_s=60, inside=True).returncode == 0
    assert (tmp_path / "ran").read_text() == "again\nagain\n"
    assert network.lost == SILENT
    assert answers(ssh)
    ssh.close()


def test_a_session_is_resumed_before_its_guest_can_be_reached(network: Network) -> None:
    frozen = network.ssh().freeze()
    ssh = network.ssh(frozen, ahead=True)
    assert ssh.resumed is True
    assert ssh.move(network.here, port=network.sshd.port, watch=lambda: None)
    assert answers(ssh)
    assert answers(ssh)
    assert network.sshd.connections == 1
    ssh.close()


def test_a_session_that_cannot_be_resumed_and_no_guest_to_ask(network: Network) -> None:
    wrong = replace(network.ssh().freeze(), cookie=bytes(16))
    with pytest.raises(ChannelLost) as caught:
        network.ssh(wrong, timeout_s=3, ahead=True)
    assert str(caught.value)
    assert network.sshd.connections == 1


def test_a_command_that_may_have_run_is_not_repeated(
    network: Network, patience: Patience, tmp_path: Path
) -> None:
    ssh = network.ssh()
    network.mute = True
    patience.ends(lambda: has_run(tmp_path))
    with pytest.raises(ChannelLost, match="its session fell silent, and the command may have run"):
        ssh.run(f"echo once >> {tmp_path}/ran", timeout_s=60)
    assert (tmp_path / "ran").read_text() == "once\n"
    assert answers(ssh)
    ssh.close()


@pytest.mark.parametrize("told_before", [False, True])
def test_what_the_guest_forgot_is_not_repeated(
    network: Network, patience: Patience, tmp_path: Path, told_before: bool
) -> None:
    """After a reboot nothing tells whether the command ran."""
    ssh = network.ssh()
    if told_before:
        assert answers(ssh)
    network.mute = True
    patience.ends(lambda: has_run(tmp_path) and not list(tmp_path.glob(".shell*")))
    command = f"echo once >> {tmp_path}/ran; rm {tmp_path}/.shell*"
    with pytest.raises(ChannelLost, match="its session fell silent, and the command may have run"):
        ssh.run(command, timeout_s=60)
    assert (tmp_path / "ran").read_text() == "once\n"
    ssh.close()


def test_a_line_is_not_given_up_under_another_command(network: Network, patience: Patience) -> None:
    """A guest that is slow to begin one command, while another is running."""
    ssh = network.ssh()
    network.held_back = True
    patience.ends(lambda: len(ssh._running) == 2)
    slow = Background(lambda: ssh.run("echo slow", timeout_s=60))
    # Alone until then, so that it waits for a moment only.
    wait_until(lambda: bool(patience.allowed_s), what="the first command to wait", timeout_s=60)
    other = Background(lambda: ssh.run("echo other", timeout_s=60))
    wait_until(lambda: bool(patience.given_up), what="the line to be doubted", timeout_s=60)
    assert not any(patience.given_up)
    network.deliver()
    for command, said in ((slow, "slow\n"), (other, "other\n")):
        done = command.wait(timeout_s=60)
        assert isinstance(done, Completed)
        assert done.stdout == said
    assert not network.lost
    ssh.close()


def test_a_deadline_that_passes_while_the_line_is_replaced(
    network: Network, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The command that is blamed is the one that was asked for; and it does not run any more."""
    ssh = network.ssh()
    ssh._timeout_s = 60
    network.deaf = True
    network.sshd.lets_in.clear()
    deadlines: list[Deadline] = []
    tell, reconnect = Ssh._submit, Ssh._reconnect

    def noted(ssh: Ssh, shell: RemoteShell, command: str, deadline: Deadline, **how: bool) -> Completed:
        deadlines.append(deadline)
        return tell(ssh, shell, command, deadline, **how)

    def late(ssh: Ssh) -> None:
        reconnect(ssh)
        object.__setattr__(deadlines[0], "started_s", float("-inf"))  # By now it has passed.

    monkeypatch.setattr(Ssh, "_submit", noted)
    monkeypatch.setattr(Ssh, "_reconnect", late)
    # Given up at once: nothing is waited for.
    monkeypatch.setattr("harness.channel.ssh._GUESTFWD_OPEN_S", 0.0)
    monkeypatch.setattr(Ssh, "_begins", lambda *_: False)
    command = Background(lambda: ssh.run(f"touch {tmp_path}/ran", timeout_s=90.0))
    wait_until(lambda: network.sshd.connections == 2, what="the connection", timeout_s=60)
    network.sshd.lets_in.set()
    with pytest.raises(CommandTimeout, match=r"^ssh: 'touch .*/ran' did not end within 90\.0 s"):
        command.wait(timeout_s=60)
    assert not (tmp_path / "ran").exists()
    ssh.close()


def test_a_paramiko_that_has_changed_inside(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no session over a line then, and it says why; a connection works as ever."""
    frozen = network.ssh().freeze()
    monkeypatch.setattr(handshake, "changed_inside", lambda: "Transport has no _expect_packet")
    ssh = network.ssh(frozen)
    why = f"paramiko {paramiko.__version__} has changed inside: Transport has no _expect_packet"
    assert ssh.resumed == why
    assert answers(ssh)
    ssh.close()


def _wrong(*_: object, **__: object) -> None:
    raise TypeError("an error of our own")


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (GuestfwdTransport, "__init__"),
        (GuestfwdTransport, "_send_message"),
        (handshake._Curve25519, "start_kex"),
        (GuestfwdSocket, "_send"),
        (GuestfwdSocket, "_recv"),
        (RemoteShell, "submit"),
        (Ssh, "_rehearse"),
        (GuestfwdSocket, "go_on"),
    ],
)
@pytest.mark.parametrize("resumed", [True, False])
def test_an_error_of_our_own_is_not_the_lines(
    network: Network, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, resumed: bool
) -> None:
    """In whichever thread of paramiko's it is raised: nothing falls back to a connection because of it."""
    frozen = network.ssh().freeze() if resumed else None
    before = network.sshd.connections
    monkeypatch.setattr(owner, name, _wrong)
    with pytest.raises(TypeError, match="an error of our own"):
        network.ssh(frozen)
    assert network.sshd.connections - before <= (0 if resumed else 1), "that of the line"


@pytest.mark.parametrize("name", ["_send", "_recv"])
def test_an_error_of_our_own_later_is_not_the_lines_either(
    network: Network, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    ssh = network.ssh()
    assert answers(ssh)
    monkeypatch.setattr(GuestfwdSocket, name, _wrong)
    with pytest.raises(TypeError, match="an error of our own"):
        ssh.run("echo hello", timeout_s=60)
    assert not network.lost
    assert network.sshd.connections == 1
    ssh.close()


def test_a_command_that_arrives_late_does_not_run(
    network: Network, patience: Patience, tmp_path: Path
) -> None:
    """It has run elsewhere: what a silent line still delivers afterwards must not run it again."""
    ssh = network.ssh()
    network.held_back = True
    patience.ends()
    assert ssh.run(f"echo once >> {tmp_path}/ran", timeout_s=60).returncode == 0
    before = len(list(tmp_path.glob(".shell-*")))
    network.deliver()
    wait_until(lambda: len(list(tmp_path.glob(".shell-*"))) > before, what="it to arrive", timeout_s=60)
    assert answers(ssh)
    assert (tmp_path / "ran").read_text() == "once\n"
    ssh.close()


def test_a_connection_of_its_own_does_not_move(network: Network) -> None:
    keys = network.keys
    ssh = Ssh(network.sshd.port, client_key=keys.client_path, host_key=keys.host_line, timeout_s=60)
    assert not ssh.move(network.there, port=1, watch=lambda: None)
    ssh.close()


def test_there_is_no_line(tmp_path: Path) -> None:
    with pytest.raises(ChannelLost, match=f"cannot open the line {tmp_path}/nothing: No such file"):
        GuestfwdSocket(tmp_path / "nothing")


@pytest.mark.parametrize("content", ["", "{}", '{"cookie": "x", "key": "", "received": []}'])
def test_what_is_no_session(tmp_path: Path, content: str) -> None:
    (tmp_path / "session").write_text(content)
    with pytest.raises((ValueError, KeyError)):
        SavedSession.read(tmp_path / "session")
