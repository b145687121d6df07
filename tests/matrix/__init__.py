"""The project's tests on other kernels and in other Debian releases than this machine's, with one table at the end.

    python -m tests.matrix kernels     Debian's kernels, emulated by QEMU, over this machine's own userland
    python -m tests.matrix releases    Debian's userlands, in folders, over this machine's own kernel

What is downloaded is kept in build/kernels and build/releases.
"""
