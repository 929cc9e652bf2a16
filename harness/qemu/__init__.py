"""One QEMU process: its binary, machine type, arguments, and its end."""
