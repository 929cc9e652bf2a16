"""The Linux inside a machine: commands, mounts, and programs that run there."""
