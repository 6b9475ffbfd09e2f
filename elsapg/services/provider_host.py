"""Hosts the dynamic providers for the engine, and ends with it.

`python -m pulumi.dynamic` waits forever: when the engine is killed, it stays behind, and with
it a half-done `create` that the next `up` would race with. This one goes within a second.
"""

from __future__ import annotations

import os
import runpy
import threading
import time


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    runpy.run_module("pulumi.dynamic", run_name="__main__", alter_sys=True)
