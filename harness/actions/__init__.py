"""Operations that span QEMU and its guest: hotplug, migration, snapshots, forced ejects."""
