"""EditReward (arXiv 2509.26346): human preference for an edited image, as a scorer over `exec:`.

    value = (mu of `following` + mu of `quality`) / 2, with a question and a head for each: was the instruction followed,
    and how good is the image? The aspects are both mu and both sigma, the model's own standard deviations.

    python pipelines/judges/build.py editreward judges
    use: "exec:judges/editreward/bin/python pipelines/judges/editreward.py --checkpoint FOLDER --base BASE"

The request's column `source` (--source) holds the image before the edit; `requests.images` or `model.inputs` lists it.
BASE is the model on which the checkpoint was trained: XiaomiMiMo/MiMo-VL-7B-SFT-2508 or Qwen/Qwen2.5-VL-7B-Instruct.
A checkpoint on Qwen3-VL does not work: it is another architecture. Never run with the published weights.
"""

from __future__ import annotations

import sys

import lines
import program
from reward import Question, Unusable

ASPECTS = ("following", "quality")
FILES = ["model.safetensors", "model.pth"]


def main(given: list[str] | None = None) -> None:
    parser = program.arguments(__doc__, None, None)
    parser.add_argument("--source", default="source", help="column of the requests with the image before the edit")
    args = parser.parse_args(given)
    out = lines.take_output()
    try:
        texts = program.read_texts(args.texts, ASPECTS)
        model = program.load(args, FILES, ["rm_heads.head_0.", "rm_heads.head_1."])
    except Unusable as error:
        sys.exit(f"editreward: {error}")

    def ask(item: program.Item) -> list[Question]:
        images = [lines.source(item, args.source), lines.result(item)]
        return [(images, model.asked(text, item["prompt"])) for text in texts]

    def values(questions: list[list[Question]]) -> list[program.Item]:
        outputs = [model.outputs([both[head] for both in questions], head) for head in range(len(ASPECTS))]
        return [score(dict(zip(ASPECTS, pairs, strict=True))) for pairs in zip(*outputs, strict=True)]

    formula = "mean of mu at <|Reward|> of the questions following and quality"
    about = program.hello(model, "editreward", args.checkpoint, texts, [args.source], formula)
    lines.serve(about, lambda items: program.scores(items, args.batch, ask, values), out)


def score(outputs: dict[str, tuple[float, float]]) -> program.Item:
    """Return the score of {aspect: (mu, sigma)}."""
    aspects = {name: mu for name, (mu, _) in outputs.items()}
    sigmas = {f"sigma {name}": sigma for name, (_, sigma) in outputs.items()}
    return {"value": sum(aspects.values()) / len(aspects), "aspects": aspects | sigmas}


if __name__ == "__main__":
    main()
