"""What NNI starts for a trial: asks the warm process for a fork, then stands in for it.

Run by a bare `python -S -E` so that it is up in some 20 ms. It passes on its environment, folder and output
files, forwards signals, dies when the trial does (with the same exit code or signal), and lets the trial die
when NNI's manager or it itself is killed. Without a warm process it becomes an ordinary, slow trial.
"""

import json
import os
import select
import signal
import socket
import sys

CANCELLED = "it was cancelled"
ORPHANED = "the warm process died in the middle of the trial"


def main() -> None:
    try:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(os.environ["NAS_WARM_SOCKET"])
        request = json.dumps({"argv": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd()}).encode()
        socket.send_fds(sock, [len(request).to_bytes(4, "big")], [1, 2])
        sock.sendall(request)
        signals, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        manager = os.getppid()
        answer = b""
        while not answer.endswith(b"\n"):
            ready, _, _ = select.select([sock.fileno(), signals], [], [], 1.0)
            if signals in ready:
                print(CANCELLED, file=sys.stderr, flush=True)  # for the search: nobody killed it
                sock.sendall(os.read(signals, 1))
            if sock.fileno() in ready:
                part = sock.recv(256)
                if not part:
                    break
                answer += part
            if os.getppid() != manager:
                return  # closing the socket ends the trial
    except (OSError, KeyError) as error:
        cold(str(error) or type(error).__name__)
    if not answer:
        print(ORPHANED, file=sys.stderr)
        sys.exit(1)
    end = json.loads(answer)
    if "signal" in end:
        if end["signal"] in (signal.SIGINT, signal.SIGTERM):
            signal.signal(end["signal"], signal.SIG_DFL)
        os.kill(os.getpid(), end["signal"])
    sys.exit(end.get("code", 1))


def cold(reason: str) -> None:
    print(f"no warm start ({reason}); importing everything anew", file=sys.stderr, flush=True)
    # -P: where modules are, PYTHONPATH says; a `utils` in the current folder is not ours.
    os.execv(sys.executable, [sys.executable, "-P", "-W", "ignore::RuntimeWarning", *sys.argv[1:]])


if __name__ == "__main__":
    main()
