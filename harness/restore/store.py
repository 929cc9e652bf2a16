"""The store of templates in the cache: made on first use, shared by all workers, limited in size."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from harness.artifacts import MachineArtifacts
from harness.deadline import TimeoutScale
from harness.errors import HarnessError, SetupError
from harness.guest.guest import Guest
from harness.guest.image import GuestImage
from harness.history import History
from harness.provision import private
from harness.provision.cache import Cache
from harness.qemu.binary import QemuInstall, has_memory_backend
from harness.qemu.machine import Machine
from harness.qemu.process import wait_interrupts_taken
from harness.qemu.spec import MachineSpec
from harness.reaper import RunFolder
from harness.restore import session as sessions
from harness.restore import template
from harness.restore.session import SessionReplay
from harness.restore.template import Template

_KIND = "template"
#: The artefacts of templates that could not be made.
_FAILED, _ARTIFACTS = "failed-template", "-artifacts"
#: The checksums of a template's large files: the cache itself compares only their sizes.
_SUMS = "sums.json"
_SUMMED = ("memory", "stream")
#: The reason why there is no template under KVM.
BOOTS_FAST = "boots a guest in a second"
#: Bytes on the disk. A template takes about 100 MB; the least recently used ones are removed.
LIMIT_BYTES = 3 << 30


class TemplateStore:
    """The templates in the cache (see :class:`harness.testbed.TemplateSource`).

    :param report: called with a message before a guest is booted, which takes seconds.
    :param plain: whether the template has the guest's memory in its stream; by default only if this QEMU
        cannot keep it in a file.
    """

    def __init__(
        self,
        cache: Cache,
        report: Callable[[str], None] = lambda _: None,
        limit_bytes: int = LIMIT_BYTES,
        plain: Callable[[QemuInstall], bool] = lambda qemu: not has_memory_backend(qemu),
    ) -> None:
        self._cache, self._report, self._limit = cache, report, limit_bytes
        self._is_plain, self._plain = plain, dict[str, bool]()
        self._cannot: dict[str, str] = {}
        #: The inode of the stream of each template that this process has used, by folder.
        self._used: dict[Path, int] = {}

    def find(self, spec: MachineSpec, image: GuestImage, timeout_scale: TimeoutScale) -> Template | str:
        """The template for a machine of ``spec``, made now if necessary; or the reason why there is none."""
        if spec.accel != "tcg":
            return f"{spec.accel} {BOOTS_FAST}"
        if spec.qemu.key not in self._plain:
            self._plain[spec.qemu.key] = self._is_plain(spec.qemu)
        plain = self._plain[spec.qemu.key]
        key = template.key(spec, f"{image.key} {sessions.session_key()}", plain=plain)
        if key not in self._cannot:
            try:
                return self._entry(key, spec, image, timeout_scale, plain=plain)
            except HarnessError as exc:
                # The guest is booted instead. If it is broken, that boot fails, with artefacts.
                self._cannot[key] = exc.message
                self._report(f"no template of {spec.machine_type.name}, so guests are booted: {exc.message}")
        return self._cannot[key]

    def _entry(
        self, key: str, spec: MachineSpec, image: GuestImage, timeout_scale: TimeoutScale, *, plain: bool
    ) -> Template:
        made: list[None] = []

        def fill(into: Path) -> None:
            self._report(f"booting the template of {spec.machine_type.name} ({spec.qemu.name}) …")
            evidence = self._cache.root / _FAILED / key
            with _keeping_artifacts(evidence) as run:
                _make(run, into, spec, image, timeout_scale, plain=plain)
            (into / _SUMS).write_text(json.dumps(_sums(into)))
            made.append(None)

        def find() -> Template:
            return Template(self._cache.entry(_KIND, key, fill, self._report), plain=plain)

        found = find()
        if found.folder not in self._used and _was_written_to(found) and self._damage_of(found) is not None:
            found = find()
        self._used[found.folder] = _inode(found.stream)
        with contextlib.suppress(OSError):  # A cache that cannot be written to can still be used.
            os.utime(found.folder)
        if made:
            self._evict()
        return found

    def damage_of(self, found: Template) -> str | None:
        """What is wrong with a template's files in the store, which are read completely."""
        if _inode(found.stream) != self._used.get(found.folder):
            return "another process has removed the template meanwhile"
        return self._damage_of(found)

    def _damage_of(self, found: Template) -> str | None:
        changed = _changed(found)
        if changed is None:
            return None
        self._report(f"{found.folder} is damaged ({changed}); it is removed and made again when needed")
        with contextlib.suppress(OSError, SetupError):  # A cache that cannot be written to can still be used.
            self._remove(found)
        return changed

    def _remove(self, found: Template) -> None:
        with self._cache.lock(f"{_KIND}-{found.folder.name}", self._report), self._cache.scratch() as scratch:
            if _changed(found) is not None:  # Otherwise another process has made it again meanwhile.
                found.folder.rename(scratch / "damaged")

    def _evict(self) -> None:
        """Remove the least recently used templates above the limit; running machines keep theirs open."""
        with self._cache.lock(f"{_KIND}-evict", self._report):
            found = sorted(filter(None, map(_usage, (self._cache.root / _KIND).iterdir())))
            used = 0
            for position, (_, size, folder) in enumerate(reversed(found)):
                used += size
                if used > self._limit and position:
                    shutil.rmtree(folder, ignore_errors=True)


def _usage(folder: Path) -> tuple[float, int, Path] | None:
    """When a template was last used, and its bytes on the disk; ``None`` if another process removes it."""
    try:
        size = sum(file.stat().st_blocks * 512 for file in folder.iterdir())
        return folder.stat().st_mtime, size, folder
    except OSError:
        return None


def _sums(folder: Path) -> dict[str, dict[str, object]]:
    """The hash and the modification time of each large file of a template."""
    files = [folder / name for name in _SUMMED if (folder / name).exists()]
    return {file.name: {"sha256": _sha256(file), "mtime_ns": file.stat().st_mtime_ns} for file in files}


def _recorded(found: Template) -> dict[str, dict[str, object]]:
    sums: dict[str, dict[str, object]] = json.loads((found.folder / _SUMS).read_text())
    return sums


def _was_written_to(found: Template) -> bool:
    """Whether a template's file was modified after it was made.

    Then its content is checked, which takes a second.
    """
    try:
        recorded = _recorded(found).items()
        return any((found.folder / name).stat().st_mtime_ns != facts["mtime_ns"] for name, facts in recorded)
    except (OSError, ValueError, KeyError, TypeError):
        return True


def _changed(found: Template) -> str | None:
    """A message about the first file that has changed since the template was made, or ``None``."""
    try:
        for name, facts in _recorded(found).items():
            if _sha256(found.folder / name) != facts["sha256"]:
                return f"the content of its {name} has changed since it was made"
    except (OSError, ValueError, KeyError, TypeError) as exc:
        return f"it cannot be read: {exc}"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _inode(path: Path) -> int:
    """The inode of a file of a template; 0 if there is no file."""
    try:
        return path.stat().st_ino
    except OSError:
        return 0


@contextlib.contextmanager
def _keeping_artifacts(evidence: Path) -> Iterator[RunFolder]:
    """A folder for the machines that make a template. If it fails, their artefacts are kept in ``evidence``.

    They replace those of the failure before.
    """
    run = RunFolder()
    try:
        yield run
    except HarnessError as exc:
        shutil.rmtree(evidence, ignore_errors=True)
        with contextlib.suppress(OSError, SetupError):  # As in _entry.
            private.folder(evidence.parent)
            for folder in run.path.glob(f"*{_ARTIFACTS}"):
                shutil.copytree(folder, evidence / folder.name.removesuffix(_ARTIFACTS))
            exc.message += f"; artefacts: {evidence}"
        raise
    finally:
        run.close()


def _make(
    run: RunFolder,
    into: Path,
    spec: MachineSpec,
    image: GuestImage,
    timeout_scale: TimeoutScale,
    *,
    plain: bool,
) -> None:
    """Boot a guest, save it as a template, and check that it can be restored."""
    bare = template.bare(spec)
    memory_file = None if plain else template.memory_of(into)
    with _guest(replace(bare, memory_file=memory_file), run, image, timeout_scale) as guest:
        # Over the console: no SSH connection but the saved session may be open when the guest is saved.
        guest.use("console")
        guest.wait_booted()
        saved = sessions.save_session(guest)
        wait_interrupts_taken(guest.machine)  # Otherwise a restored guest may hang.
        template.save(guest.machine, into)
    made = Template(into, plain=plain)
    saved.write(made.session)
    trial = replace(bare, name="trial").restored(made.memory)
    with (
        contextlib.closing(SessionReplay(saved, image, timeout_scale)) as session,
        _guest(trial, run, image, timeout_scale) as guest,
    ):
        finish = template.restore(guest.machine, made)
        sessions.wait_restored(guest, session)
        finish()


@contextlib.contextmanager
def _guest(
    spec: MachineSpec, run: RunFolder, image: GuestImage, timeout_scale: TimeoutScale
) -> Iterator[Guest]:
    artifacts = MachineArtifacts(run.path / f"{spec.name}{_ARTIFACTS}")
    artifacts.folder.mkdir()
    history = History(artifacts.folder / "history.ndjson")
    try:
        machine = Machine.launch(
            spec, run, run.path / spec.name, artifacts, history, timeout_scale=timeout_scale
        )
        guest = Guest(machine, image)
        try:
            yield guest
        finally:
            guest.disconnect()
            machine.close()
    finally:
        history.close()
