"""Decodes what strangers send, in a process of its own that its parent can end: ``python -m
mars_gguf.media.worker FD``, standard input a socket, FD a file in memory.

Both ways a message is its length (4 bytes, big-endian) and JSON. The file holds what it is about:
the bytes of a picture or film, then the pixels of pictures as RGB, one after another, which many
pieces through a socket would take much longer to bring where all processors are busy. Nothing that
comes from here is run or unpickled, so that a decoder which a picture has taken over stays alone.
"""

from __future__ import annotations

import io
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import threading
from typing import Any

from PIL import Image

from mars_gguf.errors import MarsError
from mars_gguf.media.images import decode_image
from mars_gguf.media.video import load_video

LENGTH = struct.Struct(">I")
# Bytes that decoding may take, and more of them for each pixel. Films are decoded by many threads.
PICTURE, FILM = (256 << 20, 32), (1 << 30, 64)
LAST = 2.0  # seconds after the deadline, when there may be no parent any more
SMALLEST_FRAME = 28 * 28  # pixels


def pack(message: dict[str, Any]) -> bytes:
    """Writes a message, with its length."""
    content = json.dumps(message).encode()
    return LENGTH.pack(len(content)) + content


def serve(connection: socket.socket, file: int) -> None:
    """Answers requests until nobody is there to ask."""
    stream = connection.makefile("rwb")
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    while length := stream.read(LENGTH.size):
        asked = json.loads(stream.read(*LENGTH.unpack(length)))
        # In C as well, unlike a handler of Python's.
        signal.setitimer(signal.ITIMER_REAL, asked["seconds"] + LAST)
        some, each = FILM if "max_frames" in asked else PICTURE
        memory = some + each * asked["most_pixels"]
        resource.setrlimit(resource.RLIMIT_DATA, (memory, most))
        try:
            pictures = _film(asked, file) if "max_frames" in asked else [_picture(asked, file)]
            place = 0
            for picture in pictures:
                place += os.pwrite(file, picture.tobytes(), place)
            answer: dict[str, Any] = {"sizes": [picture.size for picture in pictures]}
        except MarsError as error:
            answer = {"error": str(error)}
        except MemoryError:
            answer = {"error": f"a picture or film takes more than {memory >> 20} MiB to decode"}
        signal.setitimer(signal.ITIMER_REAL, 0)
        stream.write(pack(answer))
        stream.flush()


def _picture(asked: dict[str, Any], file: int) -> Image.Image:
    data = io.BytesIO(os.pread(file, asked["size"], 0))
    return decode_image(data, "a picture", asked["max_pixels"], asked["seconds"])


def _film(asked: dict[str, Any], file: int) -> list[Image.Image]:
    """Frames of a film, scaled down to ``max_pixels`` together."""
    path = f"/dev/fd/{file}"
    try:
        frames = load_video(
            path,
            max_frames=asked["max_frames"],
            max_pixels=asked["most_pixels"],
            seconds=asked["seconds"],
        ).frames
    except MarsError as error:
        raise MarsError(str(error).replace(path, "a film")) from error
    share = asked["max_pixels"] // len(frames)
    if share < SMALLEST_FRAME:
        raise MarsError("a film's frames have too many pixels, counting what precedes it")
    for frame in frames:
        scale = (share / (frame.width * frame.height)) ** 0.5
        if scale < 1:
            frame.thumbnail((int(frame.width * scale) or 1, int(frame.height * scale) or 1))
    return frames


def _end_with_parent(connection: socket.socket) -> None:
    """Ends this process when nobody is there to ask any more."""
    gone = select.poll()
    gone.register(connection, select.POLLRDHUP)
    gone.poll()
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection = socket.socket(fileno=0)  # open until what is wrong has been said
    threading.Thread(target=_end_with_parent, args=[connection], daemon=True).start()
    serve(connection, int(sys.argv[1]))
