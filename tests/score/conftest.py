"""What the tests of scorers share: tiny random instances of the real models, and servers on loopback."""

from __future__ import annotations

import contextlib
import json
import math
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tiny_reward, reward_numbers

SIDE, MEAN, STD = 32, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class FaultyServer(ThreadingHTTPServer):
    """Answers POSTs with what `behave(payload, count)` gives: (status, headers, body bytes), or None to cut the line.

    count is how often this very payload has come, from 1. `asked` counts payloads, `busiest` the most at once.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, behave: Callable[[Any, int], Any]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behave, self.asked, self.keys = behave, Counter(), []
        self.now = self.busiest = 0
        self.lock = threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that give up are what is tested; to print that would parse source beside the test (CPython 106905)."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def do_POST(self) -> None:
        server: Any = self.server
        size = int(self.headers["Content-Length"])
        raw = self.rfile.read(size)
        if len(raw) < size:  # the client was killed while it sent
            self.close_connection = True
            return
        with server.lock:
            server.asked[raw] += 1
            server.keys.append(self.headers.get("Authorization"))
            count = server.asked[raw]
            server.now += 1
            server.busiest = max(server.busiest, server.now)
        try:
            found = server.behave(json.loads(raw), count)
        finally:
            with server.lock:
                server.now -= 1
        if found is None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        status, headers, body = found
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):  # a client that gave up
            for part in [body] if isinstance(body, bytes) else body:  # a list is sent a tenth of a second apart
                self.wfile.write(part)
                self.wfile.flush()
                time.sleep(0.1 * isinstance(body, list))

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def faulty() -> Iterator[Callable[..., FaultyServer]]:
    """faulty(behave) -> a running server."""
    running: list[FaultyServer] = []

    def start(behave: Callable[[Any, int], Any]) -> FaultyServer:
        server = FaultyServer(behave)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        running.append(server)
        return server

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def byte_tokenizer(marks: list[str], words: list[str], **settings: Any) -> Any:
    """Bytes, and some words; marks are special."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {t: i for i, t in enumerate([*marks, *sorted(pre_tokenizers.ByteLevel.alphabet()), *words])}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, additional_special_tokens=marks, **settings)


def tiny_qwen_vl() -> tuple[Any, Any]:
    """(model, processor) of a Qwen2.5-VL of random weights: images of any size, and a part for videos."""
    import torch
    import transformers as tf

    marks = ["<pad>", "<end>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = byte_tokenizer(marks, ["Yes", "No"], pad_token="<pad>", eos_token="<end>")
    template = (
        "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<|vision_start|><|image_pad|>"
        "<|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<end>{% endfor %}"
    )
    images, videos = tf.Qwen2VLImageProcessor(min_pixels=28**2, max_pixels=56**2), tf.Qwen2VLVideoProcessor()
    processor = tf.Qwen2_5_VLProcessor(images, tokenizer, videos, chat_template=template)
    small: Any = {"hidden_size": 32, "intermediate_size": 37}
    text = small | {"vocab_size": len(tokenizer), "num_hidden_layers": 2, "num_attention_heads": 4}
    text |= {"num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": 1}
    text |= {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}}
    vision = small | {"depth": 2, "num_heads": 4, "out_hidden_size": 32, "fullatt_block_indexes": [1]}
    ids = dict(zip(("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id"), range(2, 6)))
    torch.manual_seed(0)
    config = tf.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
    return tf.Qwen2_5_VLForConditionalGeneration(config), processor


@pytest.fixture(scope="session")
def qwen_vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of `tiny_qwen_vl`."""
    folder = tmp_path_factory.mktemp("vlm") / "qwen"
    for part in tiny_qwen_vl():
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA of random weights with a byte tokenizer in which some words are tokens, some of them twice."""
    import torch
    import transformers
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder = tmp_path_factory.mktemp("vlm") / "llava"
    marks = ["<pad>", "<s>", "</s>", "<image>"]
    words = ["Yes", "yes", "ĠYes", "No", "10", "Ġ1"]
    tokenizer = byte_tokenizer(marks, words, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    template = (
        "{% for m in messages %}USER: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}"
        "{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
    )
    transformers.LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    small: Any = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = transformers.CLIPVisionConfig(image_size=28, patch_size=14, **small)
    text = transformers.LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=1024, **small)
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=marks.index("<image>"), vision_feature_layer=-1
    )
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # or all next tokens are about as likely
    model.save_pretrained(folder)
    return folder


def saved_processor(folder: Path, **settings: Any) -> None:
    """Image processor as published ones are described: Pillow's bicubic, CLIP's statistics."""
    config = {"do_resize": True, "resample": 3, "do_rescale": True, "do_normalize": True, "do_convert_rgb": True}
    config |= {"rescale_factor": 1 / 255, "image_mean": MEAN, "image_std": STD, **settings}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of random weights with tokenizer and image processor."""
    import torch
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    vocab = {t: i for i, t in enumerate([*LETTERS, *(c + "</w>" for c in LETTERS), "<|startoftext|>", "<|endoftext|>"])}
    CLIPTokenizer(vocab=vocab, merges=[]).save_pretrained(folder)
    saved_processor(
        folder, image_processor_type="CLIPImageProcessor", size={"shortest_edge": SIDE}, do_center_crop=True
    )
    config = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(
        json.dumps(config | {"crop_size": {"height": SIDE, "width": SIDE}})
    )
    body = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": len(vocab), "max_position_embeddings": 20, "eos_token_id": len(vocab) - 1, **body}
    torch.manual_seed(1)
    model = CLIPModel(
        CLIPConfig(text_config=text, vision_config={"image_size": SIDE, "patch_size": 8, **body}, projection_dim=24)
    )
    model.logit_scale.data.fill_(math.log(100))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SigLIP of random weights with tokenizer and image processor."""
    import torch
    from transformers import Siglip2Tokenizer, SiglipConfig, SiglipModel

    folder = tmp_path_factory.mktemp("siglip")
    vocab = {t: i for i, t in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *LETTERS])}
    Siglip2Tokenizer(vocab=vocab, padding_side="right").save_pretrained(folder)
    saved_processor(folder, image_processor_type="SiglipImageProcessor", size={"height": SIDE, "width": SIDE})
    body = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": len(vocab), "max_position_embeddings": 16, "projection_size": 32, **body}
    torch.manual_seed(2)
    model = SiglipModel(SiglipConfig(text_config=text, vision_config={"image_size": SIDE, "patch_size": 8, **body}))
    model.logit_scale.data.fill_(math.log(110))
    model.logit_bias.data.fill_(-12.5)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of random weights and a tokenizer of words."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("bert")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *["the", "image", "contains", "a", "red", "blue", "hat", "boot", "and", "two"],
    ]
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(vocab={w: i for i, w in enumerate(words)}).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=20, num_hidden_layers=3, num_attention_heads=2
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def served() -> Iterator[Callable[..., str]]:
    """served(scorer, key) -> address of a prefkit scorer on loopback."""
    from prefkit.score.serve import Service, http_server

    running = []

    def start(scorer: Any, key: str | None = None) -> str:
        server = http_server(Service(scorer), key=key)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        running.append(server)
        assert server.server_address[0] == "127.0.0.1"
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in running:
        server.shutdown()
        server.server_close()
