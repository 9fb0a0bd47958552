"""The hits of a search as one HTML page with embedded thumbnails, ids and similarities."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from PIL import Image

from siclip.data.images import decode_image
from siclip.errors import UserError
from siclip_platform.inference.index import Hit
from siclip_platform.inference.inputs import read_image_at

SIDE = 192
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ query }}</title><style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 72rem; padding: 1rem; }
ol { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); list-style: none;
     padding: 0; }
img, .gone { aspect-ratio: 1; border-radius: .5rem; object-fit: contain; width: 100%; background: #8881; }
.gone { display: grid; overflow-wrap: anywhere; place-items: center; }
p { margin: .25rem 0; overflow-wrap: anywhere; }
</style></head><body>
<h1>{{ query }}</h1>
{% if image %}<p><img src="{{ image }}" alt="the query image" style="max-width: 12rem"></p>{% endif %}
<ol>{% for hit, thumbnail, problem in found %}<li>
{% if thumbnail %}<img src="{{ thumbnail }}" alt="{{ hit.id }}">
{% else %}<div class="gone">{{ problem }}</div>{% endif %}
<p>{{ loop.index }}. {{ hit.id }}</p><p>similarity {{ "%.3f"|format(hit.similarity) }}</p>
</li>{% endfor %}</ol></body></html>
"""


def write_sheet(path: Path, query: str, hits: Sequence[Hit], image: bytes | None, with_images: bool) -> None:
    """Write the page; every text in it is escaped.

    Args:
        path: the HTML file.
        query: the query's text, or its image's path.
        hits: what the search found.
        image: the query image, encoded; None for a text query.
        with_images: the hits are images.
    """
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(PAGE)
    found = [(hit, *(_thumbnail_at(hit.location) if with_images else ("", "no image"))) for hit in hits]
    page = template.render(query=query, image=thumbnail(image) if image else None, found=found)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def thumbnail(file: bytes) -> str:
    """An encoded image as a JPEG of at most `SIDE` px, in a data URI."""
    image = Image.fromarray(decode_image(file))
    image.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


def _thumbnail_at(location: str) -> tuple[str, str]:
    """Return a thumbnail, or nothing and the reason."""
    try:
        return thumbnail(read_image_at(location)), ""
    except UserError as error:
        return "", str(error)
