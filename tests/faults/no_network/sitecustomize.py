"""No network for any Python process that has this folder on its PYTHONPATH: each attempt is refused and noted.

Notes go to the file that the variable NETWORK_ATTEMPTS names, where it is set. Sockets within the machine (AF_UNIX),
which launchers talk to their workers by, are left alone.
"""

import os
import sys
import traceback

REFUSED = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")


def refuse(event: str, arguments: tuple) -> None:
    if event not in REFUSED:
        return
    if event == "socket.connect" and isinstance(arguments[1], str | bytes):  # a path: AF_UNIX
        return
    wanted = [value for value in arguments if isinstance(value, str | bytes | int | tuple)]
    if notes := os.environ.get("NETWORK_ATTEMPTS"):
        with open(notes, "a", encoding="utf-8") as file:
            file.write(f"{event} {wanted}\n{''.join(traceback.format_stack(limit=12))}\n")
    raise OSError(f"no network here: {event} {wanted}")


sys.addaudithook(refuse)
