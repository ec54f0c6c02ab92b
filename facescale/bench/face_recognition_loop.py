"""The face_recognition package as its users call it, one photograph after the other; serves requests like bare_loop.

Runs as a script in an environment that has face_recognition and not facescale: it imports nothing of this package. A
request is {"photos": [paths]}; the answer {"images", "faces", "seconds"}. Called by facescale.bench.contender.
"""

from __future__ import annotations

import importlib
import json
import sys
import time


def serve(upsample: int) -> None:
    """Answer requests from standard input until it ends.

    Args:
        upsample: number_of_times_to_upsample of the CNN detector; 1 is the package's default.
    """
    # Not imported by name: neither is a dependency of facescale.
    dlib, face_recognition = map(importlib.import_module, ("dlib", "face_recognition"))

    def faces_of(path: str) -> int:
        image = face_recognition.load_image_file(path)
        boxes = face_recognition.face_locations(image, upsample, model="cnn")
        return len(face_recognition.face_encodings(image, boxes, num_jitters=1, model="small"))

    print(json.dumps({"ready": True, "dlib": dlib.__version__}), flush=True)
    for line in sys.stdin:
        photos = json.loads(line)["photos"]
        start = time.perf_counter()
        faces = sum(map(faces_of, photos))
        seconds = time.perf_counter() - start
        print(json.dumps({"images": len(photos), "faces": faces, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
