"""What a forked process is, printed as JSON: `python -m tests.forked_probe WHAT`."""

import atexit
import json
import os
import random
import signal
import sys
import threading
import time


def main(arguments):
    """tell: its surroundings; wait: until its standard input ends; die: by a signal; code: exit with it; again: a process below it."""
    return globals()[f"_{arguments[0]}"](*arguments[1:])


def _tell():
    import numpy
    import torch

    print("partial", end="")
    print(file=sys.stderr, end="", flush=True)
    facts = {
        "pid": os.getpid(), "parent": os.getppid(), "session": os.getsid(0), "folder": os.getcwd(), "path": sys.path[0], "argv": sys.argv,
        "threads": torch.get_num_threads(), "drawn": random.random(), "numpy": float(numpy.random.rand()), "torch": torch.initial_seed(),
        "environment": dict(os.environ), "cores": sorted(os.sched_getaffinity(0)), "main": "torch" in sys.modules,
    }  # fmt: skip
    print("\n" + json.dumps(facts))
    return 0


def _wait(file):
    with open(file, "w") as told:
        told.write(f"{os.getpid()} {os.getppid()}")
    os.read(0, 1)
    with open(file, "w") as told:
        told.write("the end of standard input")
    return 0


def _die(number):
    os.kill(os.getpid(), int(number))
    time.sleep(60)


def _code(number):
    sys.exit(int(number))


def _leave(file):
    """What it still does at its end: a thread, a function of `atexit`, and a text that was not yet written."""

    def later():
        time.sleep(0.2)
        print("thread", end=" ")

    atexit.register(lambda: print("atexit", end=" "))
    threading.Thread(target=later).start()
    sys.stdout = open(file, "w")  # noqa: SIM115 - a buffered one
    print("main", end=" ")
    return 4


def _interrupted():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    except KeyboardInterrupt:
        return 130


def _again(address):
    from posttrain.runs.forking.client import fork
    from posttrain.runs.forking.request import socket_at

    command = [sys.executable, "-m", "tests.forked_probe", "tell"]
    return fork(socket_at(address), command, os.environ).wait(30)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
