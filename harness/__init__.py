"""A pytest framework that boots QEMU guests with virtio-9p devices, and judges what QEMU does."""
