"""Captions per image by a CoCa: open_clip's own ``generate``, our decoder of before, and the one with caches.

    python benchmarks/captioning.py                                        # a small CoCa of the real depth ratio
    python benchmarks/captioning.py --shape real --images 4 --rounds 1     # coca_ViT-L-14's size, about 5 minutes

The same images, weights, draws, precision and threads on every side, in one process; a round measures each side once,
in turn. The weights are random, because the work is the same; the logits of the last layer are spread so that the
captions have a trained model's lengths.

(a) is a loop that does what ``CoCa.generate`` does with ``generation_type="top_p"``, which itself does not run with
transformers 5: the image is encoded once per caption, nothing is kept from token to token, and every row is computed
until the last one ends. (b) is our decoder of before: images encoded once, rows that have ended leave. (c) is
`siclip.captioning`. torch's FlopCounterMode counts the small shape in a run that is not timed, the real shape without
computing. Peaks are what a side adds to the memory in use. Decoding of JPEG and cleaning are measured beside them. In
the small shape the vocabulary, which is not scaled, takes most of the generation.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULT = Path(__file__).resolve().parent / "results" / "captioning.json"
SIDES = {"a": "open_clip's generate", "b": "without caches", "c": "with caches"}
TEXT = {"context_length": 76, "vocab_size": 49408}
SHAPES: dict[str, dict[str, Any]] = {
    # A quarter of coca_ViT-L-14's widths and of its depths, with its 255 image tokens.
    "small": {
        "embed_dim": 192,
        "vision_cfg": {
            **{"image_size": 224, "layers": 6, "width": 256, "patch_size": 14, "head_width": 64},
            **{"attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True},
        },
        "text_cfg": {**TEXT, "width": 192, "heads": 3, "layers": 3, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {**TEXT, "width": 192, "heads": 3, "layers": 3, "attn_pooler_heads": 3},
    },
}
SPREAD, END_LOGIT = 5.0, 19.4
"""Of the logits: a nucleus as small as a trained model's, and captions of 13 tokens on average."""
MIN_TOKENS, MAX_TOKENS, END = 4, 30, 49407


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=("small", "real"), default="small")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--per-image", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8, help="images at a time, on every side")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--without", nargs="*", choices=tuple(SIDES), default=[], help="sides that are not run")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    # OpenMP threads that spin while they wait would compete with the threads that are measured.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    result = measure(options)
    result["real_shape_gflop"] = counted()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    found = json.loads(options.out.read_text()) if options.out.exists() else {}
    options.out.write_text(json.dumps(found | {f"{options.shape} {options.precision}": result}, indent=2) + "\n")
    show(result)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    import numpy as np
    import torch
    from study_tools import environment
    from torch.utils.flop_counter import FlopCounterMode

    from siclip.captioning.sampling import Sampling, draws
    from siclip.training.memory import peak_memory
    from siclip_platform.tracking import git_commit

    torch.set_num_threads(options.threads)
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    sampling = Sampling(min_tokens=MIN_TOKENS, max_tokens=MAX_TOKENS)
    captioner = built(options, sampling, gpu)
    jpegs = pictures(options.images)
    started = time.perf_counter()
    pixels = decoded(jpegs, captioner)
    decode = time.perf_counter() - started
    uniforms = draws(sampling, [str(number) for number in range(options.images)], options.per_image)
    sides: dict[str, Callable[[Times], Any]] = {
        "a": lambda times: in_batches(as_open_clip, captioner, pixels, uniforms, times),
        "b": lambda times: in_batches(without_caches, captioner, pixels, uniforms, times),
        "c": lambda times: with_caches(captioner, pixels, uniforms, times),
    }
    sides = {side: run for side, run in sides.items() if side not in options.without}
    seconds: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    tokens: dict[str, Any] = {}
    peaks: dict[str, int] = {}
    for _ in range(options.rounds):
        for side, run in sides.items():
            times, before = Times(gpu), reset_peak(gpu)
            started = time.perf_counter()
            tokens[side] = run(times)
            times.wait()
            whole = time.perf_counter() - started
            seconds[side].append({"all": whole, "encode": times.encode, "generate": whole - times.encode})
            peaks[side] = max(peaks.get(side, 0), peak_memory(device) - before)
    measured = {}
    for side, run in sides.items():
        flops = None
        if options.shape == "small":
            with FlopCounterMode(display=False) as counter:
                run(Times(gpu))
            flops = counter.get_total_flops() / options.images / 1e9
        middle = sorted(seconds[side], key=lambda each: each["all"])[len(seconds[side]) // 2]
        measured[side] = {
            "what": SIDES[side],
            "images_per_second": options.images / middle["all"],
            "seconds": middle,
            "rounds": seconds[side],
            "gflop_per_image": flops,
            "equal_captions": float((tokens[side] == tokens["c"]).all(axis=1).mean()) if "c" in tokens else None,
            "peak_bytes": peaks[side],
        }
    lengths = (tokens["c"] == captioner.special.end).argmax(axis=1) - 1 if "c" in tokens else np.zeros(1)
    return {
        **environment([git_commit()]),
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "setting": {
            **{
                key: getattr(options, key)
                for key in ("shape", "images", "per_image", "batch", "threads", "precision")
            },
            "parameters": sum(parameter.numel() for parameter in captioner.model.parameters()),
            "tokens_per_caption": float(lengths.mean()),
        },
        "load_average": os.getloadavg()[0],
        "encoder_gflop_per_image": encoder_flops(captioner, pixels[:1]),
        "decode_seconds": decode,
        "clean_seconds": cleaning(captioner, tokens["c"], options.per_image) if "c" in tokens else None,
        "sides": measured,
    }


def reset_peak(gpu: bool) -> int:
    """Forget the peak of the memory and return what is in use: the peak above it is that of what follows."""
    import torch

    if gpu:
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak becomes the present size
    return 1024 * int(re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])  # type: ignore[index]


class Times:
    """Seconds in the image encoder; on a GPU the device is waited for on both sides of it."""

    def __init__(self, gpu: bool) -> None:
        self.gpu, self.encode = gpu, 0.0

    def wait(self) -> None:
        import torch

        if self.gpu:
            torch.cuda.synchronize()

    def encoded(self, captioner: Any, pixels: Any) -> Any:
        self.wait()
        started = time.perf_counter()
        result = captioner.encode(pixels)
        self.wait()
        self.encode += time.perf_counter() - started
        return result


def built(options: argparse.Namespace, sampling: Any, gpu: bool) -> Any:
    """A captioner with random weights, written to a file and opened as a user's own checkpoint is."""
    import tempfile

    import open_clip
    import torch

    from siclip.captioning.coca import CoCaCaptioner

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        if options.shape == "small":
            config = Path(folder) / "benchmark-coca.json"
            config.write_text(json.dumps({**SHAPES["small"], "custom_text": True}))
            open_clip.add_model_config(config)
        name = "coca_ViT-L-14" if options.shape == "real" else str(config)
        model: Any = open_clip.create_model(name.rpartition("/")[2].removesuffix(".json"))
        decoder = model.text_decoder
        torch.nn.init.normal_(decoder.text_projection, std=SPREAD / decoder.ln_final.weight.numel() ** 0.5)
        with torch.no_grad():
            # The first input of the last layer is a constant 1, whose weight is the logit of the end token.
            decoder.ln_final.weight[0], decoder.ln_final.bias[0] = 0, 1
            decoder.text_projection[0] = 0
            decoder.text_projection[:, END] = 0
            decoder.text_projection[0, END] = END_LOGIT
        torch.save(model.state_dict(), Path(folder) / "weights.pt")
        del model
        return CoCaCaptioner(
            name,
            str(Path(folder) / "weights.pt"),
            sampling,
            precision=options.precision,
            batch_size=options.batch,
            gpu=gpu,
        )


def pictures(count: int) -> list[bytes]:
    """JPEGs of 256 px with smooth noise, each about as large as a photograph's."""
    import numpy as np
    from PIL import Image

    rng, found = np.random.default_rng(0), []
    for _ in range(count):
        small = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        data = io.BytesIO()
        small.resize((341, 256), Image.Resampling.BICUBIC).save(data, "JPEG", quality=90)
        found.append(data.getvalue())
    return found


def decoded(jpegs: list[bytes], captioner: Any) -> Any:
    import numpy as np

    from siclip.data.images import decode_image

    return np.stack([captioner.prepare(decode_image(data)) for data in jpegs])


def cleaning(captioner: Any, tokens: Any, per_image: int) -> float:
    """Seconds that decoding of the tokens, cleaning and the comparison of an image's captions take."""
    from collections import Counter

    from siclip_platform.datasets.derived.captions.caption import usable
    from siclip_platform.datasets.derived.captions.config import CleanRules

    started = time.perf_counter()
    texts = [captioner._text(row) for row in tokens.tolist()]
    for first in range(0, len(texts), per_image):
        usable(texts[first : first + per_image], ["a picture of something in the world"], CleanRules(), Counter())
    return time.perf_counter() - started


def encoder_flops(captioner: Any, pixels: Any) -> float:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        captioner.encode(pixels)
    return counter.get_total_flops() / len(pixels) / 1e9


def counted(per_image: int = 5, steps: int = 14) -> dict[str, float]:
    """GFLOP per image of coca_ViT-L-14, counted on tensors without values: five captions of 13 tokens and the end."""
    import open_clip
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from siclip.captioning.decoder import CachedDecoders

    def count(run: Callable[[], Any]) -> float:
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops() / 1e9

    config = {
        key: value for key, value in open_clip.get_model_config("coca_ViT-L-14").items() if key != "custom_text"
    }
    with torch.no_grad(), torch.device("meta"):
        model: Any = open_clip.CoCa(**config).eval()
        pixels = torch.empty(1, 3, 224, 224)
        one = model(pixels)["image_embs"]
        rows = one.expand(per_image, -1, -1)
        decoders = CachedDecoders(model, 1, per_image, steps, torch.float32)
        zeros = torch.zeros(per_image, dtype=torch.long)

        def before(step: int) -> Any:
            return model(None, zeros[:, None].expand(-1, step + 1), rows[:, 0], rows, output_labels=False)

        encode = count(lambda: model(pixels))
        kept = count(lambda: decoders.admit(one, zeros[:1]))
        kept += sum(count(lambda s=s: decoders.step(zeros, zeros, zeros, zeros.bool(), s, 1)) for s in range(steps))
        again = sum(count(lambda s=s: before(s)) for s in range(steps))
    return {"encode": encode, "generate_before": again, "generate": kept}


def as_open_clip(captioner: Any, pixels: Any, uniforms: Any, times: Times) -> Any:
    """What ``CoCa.generate`` does with nucleus sampling: no caches, and every row until the last one has ended."""
    import numpy as np
    import torch

    from siclip.captioning.sampling import pick

    end, device = captioner.special.end, captioner.device
    draw = torch.from_numpy(uniforms).to(device, torch.float32)
    image = np.arange(len(uniforms)) * len(pixels) // len(uniforms)
    encoded = times.encoded(captioner, pixels[image])
    out = torch.full((len(uniforms), 1), captioner.special.start, device=device)
    for position in range(MAX_TOKENS + 1):
        over = (out[:, -1] == end) | (out[:, -1] == 0)
        if over.all():
            break
        logits = forward(captioner, out, encoded)
        if position < MIN_TOKENS:
            logits[:, end] = -torch.inf
        drawn = pick(logits, draw[:, min(position, MAX_TOKENS - 1)], captioner.sampling)
        drawn = drawn if position < MAX_TOKENS else torch.full_like(drawn, end)
        out = torch.cat([out, torch.where(over, 0, drawn)[:, None]], dim=1)
    return padded(out)


def without_caches(captioner: Any, pixels: Any, uniforms: Any, times: Times) -> Any:
    """Our decoder of before: an image is encoded once, and rows that have ended leave the batch."""
    import torch

    from siclip.captioning.sampling import pick

    rows, end, device = len(uniforms), captioner.special.end, captioner.device
    out = torch.zeros(rows, MAX_TOKENS + 2, dtype=torch.long, device=device)
    out[:, 0] = captioner.special.start
    draw = torch.from_numpy(uniforms).to(device, torch.float32)
    encoded = times.encoded(captioner, pixels)
    image = torch.arange(rows, device=device) * len(pixels) // rows
    open_rows = torch.arange(rows, device=device)
    for position in range(1, MAX_TOKENS + 1):
        logits = forward(captioner, out[open_rows, :position], encoded[image[open_rows]])
        if position <= MIN_TOKENS:
            logits[:, end] = -torch.inf
        chosen = pick(logits, draw[open_rows, position - 1], captioner.sampling)
        out[open_rows, position] = chosen
        open_rows = open_rows[chosen != end]
        if not len(open_rows):
            break
    out[open_rows, MAX_TOKENS + 1] = end
    return out.cpu().numpy()


def forward(captioner: Any, tokens: Any, embeddings: Any) -> Any:
    """open_clip's forward over all tokens; the logits of the last one."""
    import torch

    with torch.autocast(captioner.device.type, dtype=torch.bfloat16, enabled=captioner.dtype == torch.bfloat16):
        # The latent is not used for captions.
        output = captioner.model(None, tokens, embeddings[:, 0], embeddings, output_labels=False)
    return output["logits"][:, -1].float()


def with_caches(captioner: Any, pixels: Any, uniforms: Any, times: Times) -> Any:
    """Ours, with its encoder timed."""
    from siclip.captioning.decoder import CachedDecoders
    from siclip.captioning.generate import generate

    per_image = len(uniforms) // len(pixels)
    slots = min(captioner.batch_size, len(pixels))
    decoders = CachedDecoders(captioner.model, slots, per_image, MAX_TOKENS, captioner.dtype)
    return generate(
        decoders,
        lambda first, stop: times.encoded(captioner, pixels[first:stop]),
        uniforms,
        captioner.sampling,
        captioner.special,
    )


def padded(rows: Any) -> Any:
    import torch

    return torch.nn.functional.pad(rows, (0, MAX_TOKENS + 2 - rows.shape[1])).cpu().numpy()


def in_batches(run: Callable[..., Any], captioner: Any, pixels: Any, uniforms: Any, times: Times) -> Any:
    import numpy as np
    import torch

    per_image, size, found = len(uniforms) // len(pixels), captioner.batch_size, []
    with torch.no_grad():
        for first in range(0, len(pixels), size):
            rows = uniforms[first * per_image : (first + size) * per_image]
            found.append(run(captioner, pixels[first : first + size], rows, times))
    return np.concatenate(found)


def show(result: dict[str, Any]) -> None:
    setting, encoder = result["setting"], result["encoder_gflop_per_image"]
    print(
        f"{setting['parameters'] / 1e6:.0f} M parameters, {setting['images']} images × {setting['per_image']} "
        f"captions of {setting['tokens_per_caption']:.1f} tokens, {setting['batch']} images at a time, "
        f"{setting['precision']}, {result['device']}, {setting['threads']} threads, load {result['load_average']:.1f}"
    )
    print(f"image encoder {encoder:.1f} GFLOP per image")
    print(f"{'':24} images/s  encode s  generate s  peak MiB  GFLOP/image  equal captions")
    for side, each in result["sides"].items():
        seconds = each["seconds"]
        flops = "" if each["gflop_per_image"] is None else f"{each['gflop_per_image']:.1f}"
        equal = "" if each["equal_captions"] is None else f"{each['equal_captions']:.3f}"
        print(
            f"({side}) {each['what']:20} {each['images_per_second']:8.3f} {seconds['encode']:9.2f} "
            f"{seconds['generate']:11.2f} {each['peak_bytes'] / 2**20:9.0f} {flops:>12}  {equal}"
        )
    real = result["real_shape_gflop"]
    print(
        f"coca_ViT-L-14, five captions of 13 tokens, GFLOP per image: encode {real['encode']:.1f}, generate "
        f"{real['generate_before']:.1f} before, {real['generate']:.1f} now"
    )
    if "c" in result["sides"]:
        ours = result["sides"]["c"]
        print(f"(c): generate / encode {ours['seconds']['generate'] / ours['seconds']['encode']:.2f}")
        print(f"decode {result['decode_seconds']:.3f} s, clean {result['clean_seconds']:.3f} s, for all images")
        for side in set(result["sides"]) - {"c"}:
            ratios = [
                other["all"] / own["all"]
                for other, own in zip(result["sides"][side]["rounds"], ours["rounds"], strict=True)
            ]
            print(
                f"(c) is {statistics.median(ratios):.2f}× as fast as ({side}), {min(ratios):.2f} to {max(ratios):.2f}"
            )


if __name__ == "__main__":
    main()
