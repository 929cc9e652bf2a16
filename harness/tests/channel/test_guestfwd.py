"""Sessions over a guestfwd socket, against the server of ``test_ssh``, with a stand-in for QEMU's network."""

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
from harness.channel.guestfwd import GuestfwdSocket, SavedSession, _connect, unread
from harness.channel.handshake import GuestfwdTransport
from harness.channel.remote_shell import RemoteShell
from harness.channel.ssh import Ssh
from harness.deadline import Deadline, wait_until
from harness.errors import ChannelLost, CommandTimeout
from harness.tests.channel.test_ssh import FakeSshd, Keys


class Network:
    """The guestfwd sockets of two QEMUs, for one guest: the last client to connect has its session."""

    def __init__(self, folder: Path, keys: Keys) -> None:
        self.keys, self.sshd = keys, FakeSshd(keys.host, keys.client, folder)
        self.here, self.there = folder / "here.sock", folder / "there.sock"
        self.lost: list[str] = []
        #: Data for the server is dropped.
        self.drops_input = False
        #: Data from the server is dropped.
        self.drops_output = False
        #: Data for the server is held back until :meth:`deliver`.
        self.held_back = False
        self.late: list[bytes] = []
        #: Data that arrives during :meth:`deliver` goes to the server after what was held back.
        self._order = threading.Lock()
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
            with self._order:
                if self.held_back:
                    self.late.append(data)
                elif not self.drops_input:
                    upstream.sendall(data)

    def _outward(self, upstream: socket.socket) -> None:
        while data := upstream.recv(65536):
            assert self._client is not None
            if not self.drops_output:
                self._client.sendall(data)

    def deliver(self) -> None:
        assert self._upstream is not None
        with self._order:
            self.held_back = False
            self._upstream.sendall(b"".join(self.late))

    def ssh(
        self,
        saved: SavedSession | None = None,
        *,
        timeout_s: float = 60,
        resume_s: float | None = None,
        connected: bool = True,
    ) -> Ssh:
        """A session; without ``connected`` its QEMU is not ready yet."""
        keys, guestfwd = self.keys, GuestfwdSocket(self.here if connected else None, saved)
        ssh = Ssh(
            self.sshd.port if connected else None,
            client_key=keys.client_path,
            host_key=keys.host_line,
            timeout_s=timeout_s,
            resume_s=resume_s,
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


class ResponseTimeout:
    """Makes the response timeout depend on a condition, so that no test depends on the speed of the host.

    :ivar abandoned: the result of each attempt to abandon the guestfwd socket.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.abandoned: list[bool] = []
        #: The response timeout of each command in seconds.
        self.allowed_s: list[float] = []

    def expires(self, when: Callable[[], object] = lambda: True) -> None:
        """From now on the response timeout is short, and expires only once ``when`` is true."""
        abandon, timeout_s = Ssh._abandon_guestfwd, Ssh._response_timeout_s

        def noted(ssh: Ssh, deadline: Deadline) -> float:
            self.allowed_s.append(timeout_s(ssh, deadline))
            return self.allowed_s[-1]

        def gated(ssh: Ssh, why: str) -> bool:
            wait_until(lambda: bool(when()), what="the response timeout to expire", timeout_s=60)
            self.abandoned.append(abandon(ssh, why))
            return self.abandoned[-1]

        self._monkeypatch.setattr(Ssh, "_abandon_guestfwd", gated)
        self._monkeypatch.setattr(Ssh, "_response_timeout_s", noted)
        self._monkeypatch.setattr("harness.channel.ssh._GUESTFWD_OPEN_S", 0.1)


@pytest.fixture
def response_timeout(monkeypatch: pytest.MonkeyPatch) -> ResponseTimeout:
    return ResponseTimeout(monkeypatch)


SILENT = ["no answer for 0.1 s"]


def has_run(folder: Path) -> bool:
    """Whether a command ``echo … >> folder/ran`` has."""
    return (folder / "ran").exists() and bool((folder / "ran").read_text())


def answers(ssh: Ssh) -> bool:
    return ssh.run("echo hello", timeout_s=60).stdout == "hello\n"


def test_a_session_over_the_guestfwd_socket(network: Network) -> None:
    ssh = network.ssh()
    assert ssh.resumed is True
    assert answers(ssh)
    assert answers(ssh)
    assert network.sshd.connections == 1
    ssh.close()


def test_a_saved_session_is_resumed(network: Network, tmp_path: Path) -> None:
    """By another client than the one that began it."""
    network.ssh().save_session().write(tmp_path / "session")
    ssh = network.ssh(SavedSession.read(tmp_path / "session"))
    assert ssh.resumed is True
    assert answers(ssh)
    assert answers(ssh)
    assert network.sshd.connections == 1
    ssh.close()


@pytest.mark.parametrize("what", ["cookie", "key", "received"])
def test_a_saved_session_that_does_not_match(network: Network, what: str) -> None:
    """The port is used instead, and ``resumed`` is the reason."""
    saved = network.ssh().save_session()
    changes = {"cookie": bytes(16), "key": b"\1" * 32, "received": saved.received[:2]}
    wrong = replace(saved, **{what: changes[what]})  # type: ignore[arg-type]
    ssh = network.ssh(wrong, resume_s=1)
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


def test_a_session_does_not_move_while_a_command_runs(network: Network, tmp_path: Path) -> None:
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


def test_a_session_does_not_move_without_a_socket(network: Network, tmp_path: Path) -> None:
    ssh = network.ssh()
    assert not ssh.move(tmp_path / "nothing", port=1, watch=lambda: None)
    assert ssh.resumed == f"cannot open the guestfwd socket {tmp_path}/nothing: No such file or directory"
    assert answers(ssh)
    ssh.close()


def test_a_socket_whose_data_nobody_reads_does_not_move(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    guestfwd = GuestfwdSocket(network.here)
    connection = guestfwd._connection
    assert connection is not None
    wait_until(lambda: unread(connection) > 0, what="the server's banner", timeout_s=60)
    monkeypatch.setattr("harness.channel.guestfwd._DRAIN_S", 0.0)
    with pytest.raises(ChannelLost, match="received data to be read"):
        guestfwd.move(network.there)
    guestfwd.close()


@pytest.mark.parametrize("when", ["before", "while it connects"])
def test_a_socket_that_is_closed_does_not_move(
    network: Network, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """paramiko closes it in its own thread when the session ends."""
    network.drops_output = True
    guestfwd = GuestfwdSocket(network.here)

    def connect(path: Path) -> socket.socket:
        guestfwd.close()
        return _connect(path)

    if when == "before":
        guestfwd.close()
    monkeypatch.setattr("harness.channel.guestfwd._connect", connect)
    with pytest.raises(ChannelLost, match="the session has ended"):
        guestfwd.move(network.there)


def test_a_slow_guest_gets_longer_to_answer_over_the_guestfwd_socket(network: Network) -> None:
    ssh = network.ssh(timeout_s=600)
    ssh._running.add(0)
    assert ssh._response_timeout_s(Deadline.after(900)) == 75
    ssh.close()


def test_a_guestfwd_socket_that_stops_answering(network: Network, response_timeout: ResponseTimeout) -> None:
    """The command has not started: it and all later ones run over a TCP connection."""
    ssh = network.ssh()
    assert answers(ssh)
    network.drops_input = True
    response_timeout.expires()
    assert answers(ssh)
    assert answers(ssh)
    assert network.sshd.connections == 2
    assert network.lost == SILENT
    assert not ssh.move(network.there, port=network.sshd.port, watch=lambda: None)
    ssh.close()


def test_it_stops_answering_while_another_command_runs(
    network: Network, response_timeout: ResponseTimeout, tmp_path: Path
) -> None:
    """The second command needs a new channel and fails; the guestfwd socket is not abandoned."""
    ssh = network.ssh()
    first = Background(lambda: ssh.run(f"touch {tmp_path}/begun; sleep 600", timeout_s=600))
    wait_until((tmp_path / "begun").exists, what="the first command to run", timeout_s=60)
    network.drops_input = True
    response_timeout.expires()
    # Either paramiko's timeout or the harness's comes first.
    why = "(Timeout opening channel|its sshd did not answer within)"
    with pytest.raises(ChannelLost, match=rf"broke during 'true': {why}"):
        ssh.run("true", timeout_s=0.5)
    assert not network.lost
    ssh.close()
    with pytest.raises(ChannelLost):
        first.wait()


def test_a_command_without_a_subshell_is_repeated(
    network: Network, response_timeout: ResponseTimeout, tmp_path: Path
) -> None:
    """Such a command may run twice, so nothing records whether it has run."""
    ssh = network.ssh()
    assert answers(ssh)
    network.drops_output = True
    response_timeout.expires(lambda: has_run(tmp_path))
    assert ssh.run(f"echo again >> {tmp_path}/ran; answer=0", timeout_s=60, subshell=False).returncode == 0
    assert (tmp_path / "ran").read_text() == "again\nagain\n"
    assert network.lost == SILENT
    assert answers(ssh)
    ssh.close()


def test_a_session_is_resumed_before_its_qemu_is_ready(network: Network) -> None:
    saved = network.ssh().save_session()
    ssh = network.ssh(saved, connected=False)
    assert ssh.resumed is True
    assert ssh.move(network.here, port=network.sshd.port, watch=lambda: None)
    assert answers(ssh)
    assert answers(ssh)
    assert network.sshd.connections == 1
    ssh.close()


def test_a_session_that_does_not_match_before_its_qemu_is_ready(network: Network) -> None:
    wrong = replace(network.ssh().save_session(), cookie=bytes(16))
    with pytest.raises(ChannelLost) as caught:
        network.ssh(wrong, timeout_s=3, connected=False)
    assert str(caught.value)
    assert network.sshd.connections == 1


def test_a_command_that_may_have_run_is_not_repeated(
    network: Network, response_timeout: ResponseTimeout, tmp_path: Path
) -> None:
    ssh = network.ssh()
    network.drops_output = True
    response_timeout.expires(lambda: has_run(tmp_path))
    with pytest.raises(ChannelLost, match="the session stopped answering, and the command may have run"):
        ssh.run(f"echo once >> {tmp_path}/ran", timeout_s=60)
    assert (tmp_path / "ran").read_text() == "once\n"
    assert answers(ssh)
    ssh.close()


@pytest.mark.parametrize("after_another", [False, True])
def test_a_command_before_a_reboot_is_not_repeated(
    network: Network, response_timeout: ResponseTimeout, tmp_path: Path, after_another: bool
) -> None:
    """After a reboot it is unknown whether the command ran."""
    ssh = network.ssh()
    if after_another:
        assert answers(ssh)
    network.drops_output = True
    response_timeout.expires(lambda: has_run(tmp_path) and not list(tmp_path.glob(".shell*")))
    command = f"echo once >> {tmp_path}/ran; rm {tmp_path}/.shell*"
    with pytest.raises(ChannelLost, match="the session stopped answering, and the command may have run"):
        ssh.run(command, timeout_s=60)
    assert (tmp_path / "ran").read_text() == "once\n"
    ssh.close()


def test_it_is_not_abandoned_while_another_command_runs(
    network: Network, response_timeout: ResponseTimeout
) -> None:
    """The guest is slow to start one command while another one is running."""
    ssh = network.ssh()
    network.held_back = True
    response_timeout.expires(lambda: len(ssh._running) == 2)
    slow = Background(lambda: ssh.run("echo slow", timeout_s=60))
    # It is the only command until then, so its response timeout is short.
    wait_until(lambda: bool(response_timeout.allowed_s), what="the first command to wait", timeout_s=60)
    other = Background(lambda: ssh.run("echo other", timeout_s=60))
    wait_until(lambda: bool(response_timeout.abandoned), what="the attempt to abandon it", timeout_s=60)
    assert not any(response_timeout.abandoned)
    network.deliver()
    for command, output in ((slow, "slow\n"), (other, "other\n")):
        done = command.wait(timeout_s=60)
        assert isinstance(done, Completed)
        assert done.stdout == output
    assert not network.lost
    ssh.close()


def test_a_deadline_that_passes_during_the_reconnect(
    network: Network, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The error names the command that the caller ran, and the command does not run afterwards."""
    ssh = network.ssh()
    ssh._timeout_s = 60
    network.drops_input = True
    network.sshd.lets_in.clear()
    deadlines: list[Deadline] = []
    submit, reconnect = Ssh._submit, Ssh._reconnect

    def noted(ssh: Ssh, shell: RemoteShell, command: str, deadline: Deadline, **options: bool) -> Completed:
        deadlines.append(deadline)
        return submit(ssh, shell, command, deadline, **options)

    def late(ssh: Ssh) -> None:
        reconnect(ssh)
        object.__setattr__(deadlines[0], "started_s", float("-inf"))  # By now it has passed.

    monkeypatch.setattr(Ssh, "_submit", noted)
    monkeypatch.setattr(Ssh, "_reconnect", late)
    # The guestfwd socket is abandoned at once.
    monkeypatch.setattr("harness.channel.ssh._GUESTFWD_OPEN_S", 0.0)
    monkeypatch.setattr(Ssh, "_has_started", lambda *_: False)
    command = Background(lambda: ssh.run(f"touch {tmp_path}/ran", timeout_s=90.0))
    wait_until(lambda: network.sshd.connections == 2, what="the connection", timeout_s=60)
    network.sshd.lets_in.set()
    with pytest.raises(CommandTimeout, match=r"^ssh: 'touch .*/ran' did not end within 90\.0 s"):
        command.wait(timeout_s=60)
    assert not (tmp_path / "ran").exists()
    ssh.close()


def test_a_paramiko_that_lacks_a_private_part(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no session over the guestfwd socket, ``resumed`` names the part, and TCP works."""
    saved = network.ssh().save_session()
    monkeypatch.setattr(handshake, "missing_private_part", lambda: "Transport has no method _expect_packet")
    ssh = network.ssh(saved)
    why = f"paramiko {paramiko.__version__} lacks a private part: Transport has no method _expect_packet"
    assert ssh.resumed == why
    assert answers(ssh)
    ssh.close()


def _wrong(*_: object, **__: object) -> None:
    raise TypeError("an error in the harness")


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (GuestfwdTransport, "__init__"),
        (GuestfwdTransport, "_send_message"),
        (handshake._Curve25519, "start_kex"),
        (GuestfwdSocket, "_send"),
        (GuestfwdSocket, "_recv"),
        (RemoteShell, "submit"),
        (Ssh, "_run_first_command"),
        (GuestfwdSocket, "finish_replay"),
    ],
)
@pytest.mark.parametrize("resumed", [True, False])
def test_an_error_in_the_harness_is_raised(
    network: Network, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, resumed: bool
) -> None:
    """Whichever thread it occurs in, it is not taken for a failure of the guestfwd socket."""
    saved = network.ssh().save_session() if resumed else None
    before = network.sshd.connections
    monkeypatch.setattr(owner, name, _wrong)
    with pytest.raises(TypeError, match="an error in the harness"):
        network.ssh(saved)
    assert network.sshd.connections - before <= (0 if resumed else 1), "the one of the guestfwd socket"


@pytest.mark.parametrize("name", ["_send", "_recv"])
def test_a_later_error_in_the_harness_is_raised(
    network: Network, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    ssh = network.ssh()
    assert answers(ssh)
    monkeypatch.setattr(GuestfwdSocket, name, _wrong)
    with pytest.raises(TypeError, match="an error in the harness"):
        ssh.run("echo hello", timeout_s=60)
    assert not network.lost
    assert network.sshd.connections == 1
    ssh.close()


def test_a_command_that_arrives_late_does_not_run(
    network: Network, response_timeout: ResponseTimeout, tmp_path: Path
) -> None:
    """It has run over TCP: it must not run again when the guestfwd socket delivers it afterwards."""
    ssh = network.ssh()
    network.held_back = True
    response_timeout.expires()
    assert ssh.run(f"echo once >> {tmp_path}/ran", timeout_s=60).returncode == 0
    before = len(list(tmp_path.glob(".shell-*")))
    network.deliver()
    wait_until(lambda: len(list(tmp_path.glob(".shell-*"))) > before, what="it to arrive", timeout_s=60)
    assert answers(ssh)
    assert (tmp_path / "ran").read_text() == "once\n"
    ssh.close()


def test_a_tcp_connection_does_not_move(network: Network) -> None:
    keys = network.keys
    ssh = Ssh(network.sshd.port, client_key=keys.client_path, host_key=keys.host_line, timeout_s=60)
    assert not ssh.move(network.there, port=1, watch=lambda: None)
    ssh.close()


def test_there_is_no_socket(tmp_path: Path) -> None:
    with pytest.raises(
        ChannelLost, match=f"cannot open the guestfwd socket {tmp_path}/nothing: No such file"
    ):
        GuestfwdSocket(tmp_path / "nothing")


@pytest.mark.parametrize("content", ["", "{}", '{"cookie": "x", "key": "", "received": []}'])
def test_a_file_that_is_not_a_session(tmp_path: Path, content: str) -> None:
    (tmp_path / "session").write_text(content)
    with pytest.raises((ValueError, KeyError)):
        SavedSession.read(tmp_path / "session")
