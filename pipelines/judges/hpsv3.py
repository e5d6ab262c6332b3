"""HPSv3 (arXiv 2508.03789): human preference for an image and its prompt, as a scorer over `exec:`.

    value = mu of the head at the token <|Reward|>; the aspect `sigma` is the model's own standard deviation

    python pipelines/judges/build.py hpsv3 judges
    use: "exec:judges/hpsv3/bin/python pipelines/judges/hpsv3.py"

Base Qwen2-VL-7B-Instruct; 17 GB of weights in bfloat16. Never run with the published weights.
"""

from __future__ import annotations

import sys

import lines
import program
from reward import Question, Unusable

BASE, WEIGHTS, FILE = "Qwen/Qwen2-VL-7B-Instruct", "MizzenAI/HPSv3", "HPSv3.safetensors"


def main(given: list[str] | None = None) -> None:
    args = program.arguments(__doc__, WEIGHTS, BASE).parse_args(given)
    out = lines.take_output()
    try:
        (text,) = program.read_texts(args.texts, ["question"])
        model = program.load(args, [FILE], ["rm_head."])
    except Unusable as error:
        sys.exit(f"hpsv3: {error}")

    def ask(item: program.Item) -> Question:
        return [lines.result(item)], model.asked(text, item["prompt"])

    def values(questions: list[Question]) -> list[program.Item]:
        return [{"value": mu, "aspects": {"sigma": sigma}} for mu, sigma in model.outputs(questions)]

    about = program.hello(model, "hpsv3", args.checkpoint, [text], [], "mu at <|Reward|>")
    lines.serve(about, lambda items: program.scores(items, args.batch, ask, values), out)


if __name__ == "__main__":
    main()
