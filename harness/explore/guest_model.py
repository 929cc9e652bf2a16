"""The model of a machine with a Linux guest: which steps are possible, and what they change.

The guest's kernel removes a device that is in use only when its last user is gone, and handles no other
hotplug meanwhile (kernel: ``net/9p/trans_virtio.c``, ``p9_virtio_remove``). So no other device is plugged or
unplugged while one waits to leave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from harness.explore.model import Action, Table
from harness.explore.program import ShareKind, Step

#: A Tattach, which can be held: the guest is about to mount the share.
ATTACH = "attach"
#: The requests that can be held: those of a reader, and of a writer, of a mounted share; and that of a mount.
HOLDS = ("read", "write", ATTACH)


@dataclass(frozen=True)
class GuestShare:
    """One share's device, and what the guest does with it.

    :ivar leaving: ``device_del`` was accepted, and the guest waits for the last user.
    :ivar ejected: the device was ejected by force; the guest's kernel still lists it until a reset.
    :ivar unbound: the guest's driver is unbound from it.
    :ivar mounted: it is mounted at its mount point.
    :ivar open: a process has a file of it open, also after ``umount -l``.
    :ivar unlinked: that file was unlinked. :ivar held: the request whose system call is held.
    :ivar written: the guest has written a file.
    """

    plugged: bool = False
    leaving: bool = False
    ejected: bool = False
    unbound: bool = False
    mounted: bool = False
    open: bool = False
    unlinked: bool = False
    held: str = ""
    written: bool = False

    @property
    def in_use(self) -> bool:
        """Whether the share has a session in the guest's model, which has to block migration and unplug."""
        return self.plugged and (self.mounted or self.open)

    @property
    def attaching(self) -> bool:
        """Whether the guest's model has a Tattach of this share in flight: migration must not complete."""
        return self.held == ATTACH

    def without_session(self) -> GuestShare:
        """The model's share after the guest has been reset."""
        return GuestShare(plugged=self.plugged, written=self.written)

    def gone(self) -> GuestShare:
        """The model's share after its device was unplugged in the guest."""
        return GuestShare(written=self.written)


@dataclass(frozen=True)
class GuestState:
    """A state of the machine. Equal states have equal futures.

    :ivar saved: what the snapshot has of each device: whether it is plugged, and whether it is unbound.
    """

    kinds: tuple[ShareKind, ...]
    shares: tuple[GuestShare, ...]
    running: bool = True
    saved: tuple[tuple[bool, bool], ...] | None = None

    def possible(self) -> Iterable[Step]:
        """Every step of the guest's alphabet whose precondition holds in the model."""
        return TABLE.possible(self, len(self.shares))

    def after(self, step: Step) -> GuestState:
        """The state of the guest's model after a step.

        :raises ValueError: when the step is not possible here.
        """
        return TABLE.after(self, len(self.shares), step)

    def share(self, step: Step) -> GuestShare:
        """The share in the guest's model that a step is about."""
        assert step.share is not None
        return self.shares[step.share]

    def changed(self, step: Step, share: GuestShare) -> GuestState:
        """The state of the guest's model with another share for the one that the step is about."""
        assert step.share is not None
        return replace(self, shares=(*self.shares[: step.share], share, *self.shares[step.share + 1 :]))

    def any(self, holds: Callable[[GuestShare], bool]) -> bool:
        """Whether something holds for any share of the guest's model."""
        return any(map(holds, self.shares))

    @property
    def blocked(self) -> bool:
        """Whether migration has to be refused, in the guest's model."""
        return self.any(lambda share: share.in_use)

    @property
    def attaching(self) -> bool:
        """Whether the guest's model has a Tattach in flight."""
        return self.any(lambda share: share.attaching)

    @property
    def waiting(self) -> bool:
        """Whether the guest of the model waits for a device's last user, or for one ejected by force."""
        return self.any(lambda share: share.leaving or share.ejected)


class GuestAlphabet:
    """The steps of a Linux guest."""

    def start(self, shares: Sequence[ShareKind]) -> GuestState:
        """The state of the guest's model when a guest has just been restored."""
        return GuestState(tuple(shares), (GuestShare(),) * len(shares))


_HOSTILE, _PLAIN, _LIFE = "a hostile guest cannot hurt QEMU", "plain use", "lifecycle"
_BLOCKED, _MIGRATES = "blocked while mounted", "migrates when unmounted"
_REFUSAL = "refusal"
_VMSTATE, _BUSY = "no crash in vmstate change", "unplug is refused while busy"


def _idle(share: GuestShare) -> bool:
    """In the guest's model: mounted, and without a request that is held."""
    return share.mounted and not share.held


def _when(holds: Callable[[GuestShare], bool]) -> Callable[[GuestState, Step], bool]:
    """A precondition of the guest's model: the guest runs, and something holds for the share."""
    return lambda state, step: state.running and holds(state.share(step))


def _with(**values: bool | str) -> Callable[[GuestState, Step], GuestState]:
    return lambda state, step: state.changed(step, replace(state.share(step), **values))  # type: ignore[arg-type]


def _used_less(state: GuestState, step: Step, share: GuestShare) -> GuestState:
    """In the guest's model a user has ended: a device that waited for its last user leaves."""
    return state.changed(step, share.gone() if share.leaving and not share.in_use else share)


def _umount(state: GuestState, step: Step) -> GuestState:
    return _used_less(state, step, replace(state.share(step), mounted=False))


def _close(state: GuestState, step: Step) -> GuestState:
    return _used_less(state, step, replace(state.share(step), open=False, unlinked=False))


def _can_delete(state: GuestState, step: Step) -> bool:
    """When the guest's model has ``device_del``: also when stopped, and as a second request at most."""
    share = state.share(step)
    return share.plugged and not share.attaching and (share.leaving or not state.waiting)


def _device_del(state: GuestState, step: Step) -> GuestState:
    """``device_del`` in the guest's model: a guest that is stopped acts on it when it runs again."""
    share = state.share(step)
    waits = share.in_use or not state.running
    return state.changed(step, replace(share, leaving=True) if waits else share.gone())


def _cont(state: GuestState, _step: Step) -> GuestState:
    shares = (share.gone() if share.leaving and not share.in_use else share for share in state.shares)
    return replace(state, running=True, shares=tuple(shares))


def _eject(state: GuestState, step: Step) -> GuestState:
    share = state.share(step)
    return state.changed(step, GuestShare(ejected=True, written=share.written))


def _reset(state: GuestState, _step: Step) -> GuestState:
    shares = (share.gone() if share.leaving else share.without_session() for share in state.shares)
    return replace(state, shares=tuple(shares))


def _same(state: GuestState, _step: Step) -> GuestState:
    return state


def _savevm(state: GuestState, _step: Step) -> GuestState:
    if state.blocked:
        return state
    return replace(state, saved=tuple((share.plugged, share.unbound) for share in state.shares))


def _can_load(state: GuestState, _step: Step) -> bool:
    """When the guest's model has ``loadvm``: over the same devices.

    The processes that use a share do not exist in the snapshot.
    """
    if state.saved is None:
        return False
    alike = all(share.plugged == saved for share, (saved, _) in zip(state.shares, state.saved, strict=True))
    return alike and _no_request(state, _step)


def _loadvm(state: GuestState, _step: Step) -> GuestState:
    assert state.saved is not None
    pairs = zip(state.shares, state.saved, strict=True)
    shares = (replace(share.without_session(), unbound=unbound) for share, (_, unbound) in pairs)
    return replace(state, shares=tuple(shares))


def _quiet(state: GuestState, _step: Step) -> bool:
    return state.running and not state.waiting


def _no_request(state: GuestState, step: Step) -> bool:
    return _quiet(state, step) and not state.any(lambda share: bool(share.held))


def _can_reset(state: GuestState, _step: Step) -> bool:
    """When the guest's model can reset.

    A boot takes long, so it is not done where no device is affected.
    """
    return state.running and state.any(lambda share: share.plugged or share.ejected)


def _can_rebind(state: GuestState, step: Step) -> bool:
    """When the guest's model can unbind and bind the driver.

    It is unbound from every device, which waits for their users, and bound again.
    """
    bound = state.any(lambda share: share.plugged) and not state.any(lambda share: share.unbound)
    return _no_request(state, step) and not state.blocked and bound


def _can_unbind(state: GuestState, step: Step) -> bool:
    share = state.share(step)
    return _no_request(state, step) and share.plugged and not share.in_use and not share.unbound


def _can_mount(share: GuestShare) -> bool:
    idle = share.plugged and not share.leaving and not share.in_use
    return idle and not share.unbound and not share.attaching


def _can_hold(state: GuestState, step: Step) -> bool:
    share = state.share(step)
    if step.value == ATTACH:
        return _quiet(state, step) and _can_mount(share)
    return state.running and _idle(share) and not share.leaving


def _release(state: GuestState, step: Step) -> GuestState:
    share = state.share(step)
    return state.changed(step, replace(share, held="", mounted=share.mounted or share.attaching))


#: The steps of a Linux guest.
TABLE: Table[GuestState] = Table(
    {
        "plug": Action(lambda s, t: _quiet(s, t) and not s.share(t).plugged, _with(plugged=True), _LIFE),
        "mount": Action(
            _when(_can_mount),
            _with(mounted=True),
            _LIFE,
        ),
        "umount": Action(_when(lambda share: _idle(share) and not share.open), _umount, _BLOCKED),
        "umount_lazy": Action(_when(lambda share: _idle(share) and share.open), _umount, _BLOCKED),
        "open": Action(_when(lambda share: _idle(share) and not share.open), _with(open=True), _PLAIN),
        "close": Action(_when(lambda share: share.open and not share.held), _close, _BLOCKED),
        "unlink": Action(
            _when(lambda share: _idle(share) and share.open and not share.unlinked),
            _with(unlinked=True),
            _PLAIN,
        ),
        "write": Action(_when(_idle), _with(written=True), _PLAIN),
        "read": Action(_when(lambda share: _idle(share) and share.written), _same, _PLAIN),
        "device_del": Action(_can_delete, _device_del, _BUSY),
        "device_del_absent": Action(_when(lambda share: not share.plugged), _same, _REFUSAL),
        "eject": Action(
            _when(lambda share: share.plugged and not share.leaving and not share.attaching),
            _eject,
            _HOSTILE,
        ),
        "hold": Action(
            _can_hold,
            lambda s, t: s.changed(t, replace(s.share(t), held=str(t.value))),
            _PLAIN,
            HOLDS,
        ),
        "release": Action(_when(lambda share: bool(share.held)), _release, _PLAIN),
        "unbind": Action(_can_unbind, _with(unbound=True), _LIFE),
        "bind": Action(
            lambda s, t: _quiet(s, t) and s.share(t).plugged and s.share(t).unbound,
            _with(unbound=False),
            _LIFE,
        ),
        "rebind": Action(_can_rebind, _same, _LIFE, of_machine=True),
        "stop": Action(
            lambda s, _: s.running, lambda s, _: replace(s, running=False), _VMSTATE, of_machine=True
        ),
        "cont": Action(lambda s, _: not s.running, _cont, _VMSTATE, of_machine=True),
        "system_reset": Action(_can_reset, _reset, _BLOCKED, of_machine=True),
        "reboot": Action(
            lambda s, t: _can_reset(s, t) and _no_request(s, t), _reset, _BLOCKED, of_machine=True
        ),
        "savevm": Action(lambda s, t: _quiet(s, t) and not s.attaching, _savevm, _BLOCKED, of_machine=True),
        "loadvm": Action(_can_load, _loadvm, _VMSTATE, of_machine=True),
        "migrate": Action(lambda s, _: not s.waiting, _same, _MIGRATES, of_machine=True),
    }
)
