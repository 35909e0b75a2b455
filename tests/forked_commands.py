"""Commands that start without importing: forks of one process that has imported the libraries.

PyTorch and mmsegmentation take two to five seconds to import, DVC one, and the tests of the DAG start very many
commands. `serve` imports what they share, never SeSAM's own modules, and each command that `folder` holds hands its
arguments, environment, folder and files to a fork of it.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LIBRARIES = (
    *("cv2", "dvc.commands.repro", "dvc.repo", "dvclive", "mmengine.runner", "mmseg.apis", "plotly.graph_objects"),
    *("pycocotools.mask", "pydantic", "scipy.ndimage", "segment_anything", "skimage.morphology", "torch._dynamo"),
)
# -I: a module of the command's folder must not be imported here
CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    arguments = {arguments!r} + sys.argv[1:]
    text = json.dumps([os.getcwd(), dict(os.environ), arguments]).encode()
    socket.send_fds(server, [len(text).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(text)
    sys.exit(int(server.recv(8) or 1))
"""


@contextmanager
def forked_commands(folder: Path) -> Iterator[Path]:
    """A folder for PATH whose `python -m MODULE` and `dvc` are forks; they end with this context."""
    address, commands = folder / "address", folder / "commands"
    commands.mkdir()
    for name, arguments in {"python": [], "dvc": ["-m", "dvc"]}.items():
        text = CLIENT.format(python=sys.executable, address=str(address), arguments=arguments)
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    server = subprocess.Popen([sys.executable, __file__, str(address)])
    try:
        while not address.exists():
            assert server.poll() is None
            time.sleep(0.05)
        yield commands
    finally:
        server.kill()
        server.wait()


def serve(address: str) -> None:
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()  # the forks share this memory
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{address}.unfinished")
        listener.listen()
        Path(f"{address}.unfinished").rename(address)
        while True:
            client, _ = listener.accept()
            if os.fork() == 0:  # never waited for: it is gone with this process
                return answer(client)
            client.close()


def answer(client: socket.socket) -> None:
    """Run the command in a fork, and tell the client how it ended."""
    length, files, _, _ = socket.recv_fds(client, 4, 3)
    text = b""
    while len(text) < int.from_bytes(length, "big"):
        text += client.recv(1 << 16)
    folder, environment, arguments = json.loads(text)
    command = os.fork()
    if command:
        status = os.waitstatus_to_exitcode(os.waitpid(command, 0)[1])
        client.sendall(str(status if status >= 0 else 128 - status).encode())
        os._exit(0)
    client.close()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    run(arguments)


def run(arguments: list[str]) -> None:
    """What `python` does with these arguments, if they name a module."""
    if arguments[:1] != ["-m"]:
        os.execv(sys.executable, [sys.executable, *arguments])
    sys.argv = arguments[1:]
    sys.path[0] = str(Path.cwd())
    code: object = 0
    try:
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        code = stop.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))  # to take the libraries apart takes a second


if __name__ == "__main__":
    serve(sys.argv[1])
