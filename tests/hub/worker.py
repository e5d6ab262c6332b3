"""A process that uses the local Hub of its environment: a JSON line in, the result as a JSON line out.

{"argv": [...]} runs the command line; {"code": text, "argv": [...]} runs a script. The libraries are loaded once.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import traceback


def work(job: dict) -> dict:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if "code" in job:
                sys.argv = ["-c", *job["argv"]]
                exec(job["code"], {"__name__": "__main__"})
                code = 0
            else:
                from prefkit.cli.main import run

                code = run(job["argv"])
        except BaseException:
            traceback.print_exc()
            code = 99
    return {"returncode": code, "stdout": out.getvalue(), "stderr": err.getvalue()}


answers = sys.stdout
for line in sys.stdin:
    print(json.dumps(work(json.loads(line))), file=answers, flush=True)
