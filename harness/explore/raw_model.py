"""The model of a machine that the raw 9p client drives: which steps are possible, and what they change.

The model says what a correct QEMU does; it never looks at one. :mod:`.raw_steps` performs the steps and
compares. Steps that QEMU has to refuse are possible steps that change nothing.

Sources: QEMU ``hw/9pfs/9p.c`` (``v9fs_attach``, ``v9fs_clunk``, ``v9fs_version``, ``virtfs_reset``),
``hw/acpi/pcihp.c`` (a reset executes pending removals), ``migration/migration.c``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from harness.explore.model import Action, Table
from harness.explore.program import ShareKind, Step

#: The fids of a session, by what they are of: the export's root, attached; the root attached a second time;
#: the export's file, open; a file that was created through the session, open.
ROOT, SECOND_ROOT, FILE, MADE = "root", "second_root", "file", "made"
ROOTS = frozenset({ROOT, SECOND_ROOT})
#: Requests that can be held: a Tattach; a Tread whose tag has its highest bit set.
ATTACH, READ_HIGH_TAG = "attach", "read_high_tag"


@dataclass(frozen=True)
class Device:
    """One share's device, and its session.

    :ivar leaving: ``device_del`` was accepted, and no guest has acted on it.
    :ivar session: a Tversion was answered.
    :ivar broken: QEMU has marked it broken and ignores it until a reset (``virtio_error``).
    :ivar held: the request whose system call is held; the empty string for none.
    :ivar flushed: how many Tflush of that request wait for it, two at most.
    """

    plugged: bool = False
    leaving: bool = False
    session: bool = False
    fids: frozenset[str] = frozenset()
    broken: bool = False
    held: str = ""
    flushed: int = 0

    @property
    def blocks(self) -> bool:
        """Whether the raw client's device has to block migration: with an export that is attached it does."""
        return bool(self.fids & ROOTS)

    def without_session(self) -> Device:
        """The raw client's device in the model after a reset."""
        return Device(plugged=self.plugged, leaving=self.leaving)


@dataclass(frozen=True)
class Folder:
    """What the guest has changed in an exported folder.

    :ivar written: the file has other content. :ivar made: the created file exists.
    """

    written: bool = False
    made: bool = False


@dataclass(frozen=True)
class RawState:
    """A state of the machine. Equal states have equal futures.

    :ivar folders: by the index of the share whose fsdev exports the folder.
    :ivar running: the machine runs; its firmware has halted the CPU.
    :ivar arrived: it was migrated and has not run since: from QEMU 10.0 on its disk is inactive until then.
    :ivar migrating: a migration without a destination is active.
    :ivar saved: what the snapshot has of each device: whether it is plugged, and whether it is broken.
    """

    kinds: tuple[ShareKind, ...]
    devices: tuple[Device, ...]
    folders: tuple[Folder, ...]
    running: bool = False
    arrived: bool = False
    migrating: bool = False
    saved: tuple[tuple[bool, bool], ...] | None = None

    def possible(self) -> Iterable[Step]:
        """Every step of the raw client whose precondition holds in the model."""
        return TABLE.possible(self, len(self.devices))

    def after(self, step: Step) -> RawState:
        """The state of the raw client's model after a step.

        :raises ValueError: when the step is not possible here.
        """
        return TABLE.after(self, len(self.devices), step)

    def device(self, step: Step) -> Device:
        """The device in the raw client's model that a step is about."""
        assert step.share is not None
        return self.devices[step.share]

    def folder_of(self, share: int) -> int:
        """The index of the folder that a share of the raw client's model exports."""
        of = self.kinds[share].fsdev_of
        return share if of is None else self.folder_of(of)

    def folder(self, step: Step) -> Folder:
        """The folder of the share that a step of the raw client's model is about."""
        assert step.share is not None
        return self.folders[self.folder_of(step.share)]

    def neighbours(self, share: int) -> list[Device]:
        """The devices in the raw client's model that export the same folder, the share's own included."""
        folder = self.folder_of(share)
        return [device for other, device in enumerate(self.devices) if self.folder_of(other) == folder]

    def ready(self, step: Step) -> bool:
        """Whether the device answers the raw client: none of its folder is held (a hold is of a folder)."""
        assert step.share is not None
        device = self.device(step)
        return device.plugged and not device.broken and not any(d.held for d in self.neighbours(step.share))

    @property
    def any_held(self) -> bool:
        """Whether a request of the raw client is held."""
        return any(device.held for device in self.devices)

    @property
    def blocked(self) -> bool:
        """Whether migration has to be refused because the raw client has attached to an export."""
        return any(device.blocks for device in self.devices)

    @property
    def attaching(self) -> bool:
        """Whether a Tattach of the raw client is in flight: migration must not complete."""
        return any(device.held == ATTACH for device in self.devices)

    @property
    def leaving(self) -> bool:
        """Whether a ``device_del`` waits for a guest, which the raw client's machine does not have."""
        return any(device.leaving for device in self.devices)

    def with_device(self, step: Step, device: Device) -> RawState:
        """The state of the raw client's model with another device for the step's share."""
        assert step.share is not None
        devices = (*self.devices[: step.share], device, *self.devices[step.share + 1 :])
        return replace(self, devices=devices)

    def with_folder(self, step: Step, folder: Folder) -> RawState:
        """The raw client's model in which the exported folder of the step's share holds something else."""
        assert step.share is not None
        at = self.folder_of(step.share)
        return replace(self, folders=(*self.folders[:at], folder, *self.folders[at + 1 :]))


class RawAlphabet:
    """The steps of the raw 9p client, on a machine of type ``pc``."""

    def start(self, shares: Sequence[ShareKind]) -> RawState:
        """The state of the raw client's model when its machine has just started."""
        return RawState(tuple(shares), (Device(),) * len(shares), (Folder(),) * len(shares))


_LEAK, _LIFE, _REFUSAL = "no leak", "lifecycle", "refusal"
_BLOCKED, _MIGRATES = "blocked while mounted", "migrates when unmounted"
_VMSTATE, _BUSY = "no crash in vmstate change", "unplug is refused while busy"
_HOSTILE, _PLAIN = "a hostile guest cannot hurt QEMU", "plain use"

#: The requests that can be held, each with the fid that it needs.
HOLDS = {"read": FILE, READ_HIGH_TAG: FILE, "write": FILE, "fsync": FILE, ATTACH: ""}
#: What no driver sends. QEMU survives the first ones, and after the next ones it marks the device broken. The
#: last one is a Tversion that fails, and that ends the session nevertheless.
ANSWERED = ("unknown_type", "unknown_fid", "queue")
BREAKING = ("no_body", "ring", "next", "no_reply", "empty", "indirect")
SMALL_MSIZE = "msize"
#: Messages about the open file, or out of the export, that have to fail.
MISUSES = (
    "open",
    "walk_to_it",
    "walk_itself",
    "rename",
    "readdir",
    "xattrcreate",
    "slash",
    "huge_xattr",
    "open_link",
    "through_link",
    "open_fifo",
    "below_link",
)
#: The variants of ``own_session`` (:mod:`.raw_own_session`).
OWN_SESSIONS = (
    "read",
    "readlink",
    "no_room",
    "msize",
    "locks",
    "ftruncate",
    "fchmod",
    "replaced",
    "renamed_folder",
    "hosts_folder",
    "fifo",
)
#: The requests whose system call can be made to fail.
FAILS = ("read", "write", "fsync", ATTACH)
#: ``device_add`` commands that QEMU has to refuse, of a device that is not plugged: in the realize of the 9p
#: backend, and after that by the PCI bus and by the virtio bus.
REFUSED_PLUGS = ("fsdev", "no_tag", "long_tag", "rom", "iommu", "index", "index_late")
#: … and of one that is plugged: the same id, once and many times.
REFUSED_DUPLICATES = ("duplicate", "duplicates")


def _same(state: RawState, _step: Step) -> RawState:
    return state


def _has(fid: str) -> Callable[[RawState, Step], bool]:
    return lambda state, step: state.ready(step) and fid in state.device(step).fids


def _attached(state: RawState, step: Step) -> bool:
    return state.ready(step) and state.device(step).blocks


def _with_fids(state: RawState, step: Step, *added: str) -> RawState:
    device = state.device(step)
    return state.with_device(step, replace(device, fids=device.fids | set(added)))


def _without_fid(state: RawState, step: Step, fid: str) -> RawState:
    device = state.device(step)
    return state.with_device(step, replace(device, fids=device.fids - {fid}))


def _plug(state: RawState, step: Step) -> RawState:
    return state if state.migrating else state.with_device(step, Device(plugged=True))


def _device_del(state: RawState, step: Step) -> RawState:
    if state.migrating:
        return state
    return state.with_device(step, replace(state.device(step), leaving=True))


def _after_held(state: RawState, step: Step) -> RawState:
    """The folder in the raw client's model after the share's held request has gone on."""
    if state.device(step).held != "write":
        return state
    return state.with_folder(step, replace(state.folder(step), written=True))


def _eject(state: RawState, step: Step) -> RawState:
    return _after_held(state, step).with_device(step, Device())


def _device_reset(state: RawState, step: Step) -> RawState:
    return _after_held(state, step).with_device(step, state.device(step).without_session())


def _system_reset(state: RawState, _step: Step) -> RawState:
    for share, device in enumerate(state.devices):
        one = Step(do="device_reset", share=share)
        after = Device() if device.leaving else device.without_session()
        state = _after_held(state, one).with_device(one, after)
    return state


def _savevm(state: RawState, _step: Step) -> RawState:
    if state.blocked or state.attaching or state.migrating:
        return state
    return replace(state, saved=tuple((device.plugged, device.broken) for device in state.devices))


def _can_load(state: RawState, _step: Step) -> bool:
    plugged = [device.plugged for device in state.devices]
    saved = state.saved
    return (
        saved is not None
        and [present for present, _ in saved] == plugged
        and not state.leaving
        and not state.any_held
        and not state.arrived
    )


def _loadvm(state: RawState, _step: Step) -> RawState:
    assert state.saved is not None
    devices = tuple(Device(plugged=plugged, broken=broken) for plugged, broken in state.saved)
    return replace(state, devices=devices)


def _migrate(state: RawState, _step: Step) -> RawState:
    """A migration in the raw client's model.

    The destination waits for ``cont``, and does not know the session that the source had.
    """
    if state.blocked or state.attaching:
        return state
    devices = tuple(replace(device.without_session(), broken=device.broken) for device in state.devices)
    return replace(state, devices=devices, running=False, arrived=True)


def _settled(state: RawState, _step: Step) -> bool:
    """Whether nothing is pending in the raw client's model.

    No ``device_del`` waits, and the only requests in flight are those of attached or attaching exports.
    """
    return not state.leaving and (not state.any_held or state.blocked or state.attaching)


def _can_begin(state: RawState, _step: Step) -> bool:
    return not state.blocked and not state.any_held and not state.leaving


def _version(state: RawState, step: Step) -> RawState:
    return state.with_device(step, replace(state.device(step).without_session(), session=True))


def _can_attach(state: RawState, step: Step) -> bool:
    device = state.device(step)
    if not state.ready(step) or not device.session:
        return False
    if step.value is None:
        return ROOT not in device.fids
    return ROOT in device.fids and (step.value == "again" or SECOND_ROOT not in device.fids)


def _attach(state: RawState, step: Step) -> RawState:
    """A Tattach in the raw client's model.

    While a migration is active it gets EBUSY; a fid that is in use cannot be attached.
    """
    if state.migrating or step.value == "again":
        return state
    return _with_fids(state, step, ROOT if step.value is None else SECOND_ROOT)


def _can_create(state: RawState, step: Step) -> bool:
    return _attached(state, step) and MADE not in state.device(step).fids and not state.folder(step).made


def _create(state: RawState, step: Step) -> RawState:
    made = state.with_folder(step, replace(state.folder(step), made=True))
    return _with_fids(made, step, MADE)


def _unmade(state: RawState, step: Step) -> RawState:
    return state.with_folder(step, replace(state.folder(step), made=False))


def _can_clunk(state: RawState, step: Step) -> bool:
    device = state.device(step)
    return device.plugged and not device.broken and device.held != ATTACH and step.value in device.fids


def _can_be_malformed(state: RawState, step: Step) -> bool:
    return state.ready(step) and (step.value != "unknown_fid" or state.device(step).session)


def _malformed(state: RawState, step: Step) -> RawState:
    if step.value in ANSWERED:
        return state
    if step.value == SMALL_MSIZE:
        return _device_reset(state, step)
    return state.with_device(step, replace(state.device(step), broken=True))


def _can_flush(state: RawState, step: Step) -> bool:
    """When the raw client's model has a Tflush: of nothing, of itself, or of a held request.

    Not of a write, which may be done or not then.
    """
    device = state.device(step)
    if step.value == "itself":
        return state.ready(step) and device.session
    if device.held:
        return device.held in ("read", READ_HIGH_TAG, "fsync") and device.flushed < 2 and not device.broken
    return state.ready(step) and device.session


def _flush(state: RawState, step: Step) -> RawState:
    device = state.device(step)
    if step.value == "itself" or not device.held:
        return state
    return state.with_device(step, replace(device, flushed=device.flushed + 1))


def _can_hold(state: RawState, step: Step) -> bool:
    if step.value == ATTACH:
        return _can_attach(state, Step(do="attach", share=step.share)) and not state.device(step).blocks
    return state.ready(step) and HOLDS[str(step.value)] in state.device(step).fids


def _can_fail(state: RawState, step: Step) -> bool:
    return _can_hold(state, step) if step.value == ATTACH else _has(FILE)(state, step)


def _hold(state: RawState, step: Step) -> RawState:
    return state.with_device(step, replace(state.device(step), held=str(step.value)))


def _release(state: RawState, step: Step) -> RawState:
    device = state.device(step)
    after = _after_held(state, step).with_device(step, replace(device, held="", flushed=0))
    return _with_fids(after, step, ROOT) if device.held == ATTACH else after


def _opened(state: RawState, step: Step) -> RawState:
    return _with_fids(state, step, FILE)


def _action(
    possible: Callable[[RawState, Step], bool],
    after: Callable[[RawState, Step], RawState],
    guarantee: str,
    values: tuple[str, ...] = (),
    of_machine: bool = False,
    *,
    while_migrating: bool = False,
) -> Action[RawState]:
    """An action of the raw client's model.

    It is not possible while a migration is active, unless ``while_migrating``.
    """

    def allowed(state: RawState, step: Step) -> bool:
        return (while_migrating or not state.migrating) and possible(state, step)

    return Action(allowed, after, guarantee, values, of_machine)


_ACTIONS = {
    "plug": _action(lambda s, t: not s.device(t).plugged, _plug, _LIFE, while_migrating=True),
    "plug_refused": _action(
        lambda s, t: s.device(t).plugged == (t.value in REFUSED_DUPLICATES),
        _same,
        _REFUSAL,
        (*REFUSED_PLUGS, *REFUSED_DUPLICATES),
    ),
    "device_del": _action(lambda s, t: s.device(t).plugged, _device_del, _BUSY, while_migrating=True),
    "device_del_absent": _action(lambda s, t: not s.device(t).plugged, _same, _REFUSAL),
    "eject": _action(lambda s, t: s.device(t).plugged, _eject, _HOSTILE, while_migrating=True),
    "device_reset": _action(lambda s, t: s.device(t).plugged, _device_reset, _HOSTILE, while_migrating=True),
    "version": _action(lambda s, t: s.ready(t), _version, _HOSTILE, while_migrating=True),
    "attach": _action(_can_attach, _attach, _BLOCKED, ("", "second", "again"), while_migrating=True),
    "open": _action(lambda s, t: _attached(s, t) and FILE not in s.device(t).fids, _opened, _PLAIN),
    "read": _action(_has(FILE), _same, _PLAIN, while_migrating=True),
    "write": _action(_has(FILE), lambda s, t: s.with_folder(t, replace(s.folder(t), written=True)), _PLAIN),
    "fsync": _action(_has(FILE), _same, _PLAIN),
    "create": _action(_can_create, _create, _PLAIN),
    "unlink": _action(lambda s, t: _attached(s, t) and s.folder(t).made, _unmade, _PLAIN),
    "remove": _action(
        lambda s, t: _has(MADE)(s, t) and s.folder(t).made,
        lambda s, t: _without_fid(_unmade(s, t), t, MADE),
        _PLAIN,
    ),
    "readdir": _action(_attached, _same, _PLAIN),
    "xattrwalk": _action(_has(FILE), _same, _PLAIN),
    "clunk": _action(
        _can_clunk,
        lambda s, t: _without_fid(s, t, str(t.value)),
        _BLOCKED,
        (ROOT, SECOND_ROOT, FILE, MADE),
        while_migrating=True,
    ),
    "fail": _action(_can_fail, _same, _LIFE, FAILS),
    "short_write": _action(
        _has(FILE), lambda s, t: s.with_folder(t, replace(s.folder(t), written=True)), _LIFE
    ),
    "xattr": _action(_attached, _same, _PLAIN),
    "flush": _action(_can_flush, _flush, _HOSTILE, ("", "itself")),
    "malformed": _action(_can_be_malformed, _malformed, _HOSTILE, (*ANSWERED, *BREAKING, SMALL_MSIZE)),
    "ignored": _action(
        lambda s, t: s.device(t).plugged and s.device(t).broken,
        _same,
        _HOSTILE,
    ),
    "misuse": _action(lambda s, t: _attached(s, t) and FILE in s.device(t).fids, _same, _HOSTILE, MISUSES),
    "own_session": _action(lambda s, t: s.ready(t), _device_reset, _HOSTILE, OWN_SESSIONS),
    "statfs_of_nothing": _action(_has(FILE), _same, _HOSTILE),
    "every_kind": _action(lambda s, t: _attached(s, t) and FILE in s.device(t).fids, _same, _PLAIN),
    "hold": _action(_can_hold, _hold, _PLAIN, tuple(HOLDS)),
    "release": _action(lambda s, t: bool(s.device(t).held), _release, _PLAIN),
    "cont": _action(
        lambda s, _: not s.running,
        lambda s, _: replace(s, running=True, arrived=False),
        _VMSTATE,
        of_machine=True,
    ),
    "stop": _action(lambda s, _: s.running, lambda s, _: replace(s, running=False), _VMSTATE, (), True),
    "system_reset": _action(lambda _s, _t: True, _system_reset, _HOSTILE, (), True),
    "savevm": _action(
        lambda s, t: _settled(s, t) and not s.arrived, _savevm, _BLOCKED, (), True, while_migrating=True
    ),
    "savevm_again": _action(
        lambda s, _: s.migrating and s.saved is not None, _same, _REFUSAL, (), True, while_migrating=True
    ),
    "loadvm": _action(_can_load, _loadvm, _VMSTATE, (), True),
    "migrate": _action(_settled, _migrate, _MIGRATES, (), True),
    "migrate_begin": _action(
        _can_begin,
        lambda s, _: replace(s, migrating=True),
        _MIGRATES,
        (),
        True,
    ),
    "migrate_stall": _action(_can_begin, _same, _MIGRATES, (), True),
    "migrate_pause": _action(
        lambda s, t: _can_begin(s, t) and not s.running and not s.arrived, _same, _MIGRATES, (), True
    ),
    "migrate_cancel": _action(
        lambda s, _: s.migrating,
        lambda s, _: replace(s, migrating=False),
        _MIGRATES,
        (),
        True,
        while_migrating=True,
    ),
}

#: The steps of the raw client.
TABLE = Table(_ACTIONS)
