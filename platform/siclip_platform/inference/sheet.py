"""What a search found as one HTML page: thumbnails in the page itself, names, similarities."""

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
from siclip_platform.inference.inputs import read_place

SIDE = 192
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ query }}</title><style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 72rem; padding: 1rem; }
ol { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); list-style: none;
     padding: 0; }
img, .gone { aspect-ratio: 1; border-radius: .5rem; object-fit: contain; width: 100%; background: #8881; }
.gone { display: grid; place-items: center; }
p { margin: .25rem 0; overflow-wrap: anywhere; }
</style></head><body>
<h1>{{ query }}</h1>
{% if asked %}<p><img src="{{ asked }}" alt="the image that was asked with" style="max-width: 12rem"></p>{% endif %}
<ol>{% for hit, picture in found %}<li>
{% if picture %}<img src="{{ picture }}" alt="{{ hit.id }}">{% else %}<div class="gone">no picture</div>{% endif %}
<p>{{ loop.index }}. {{ hit.id }}</p><p>similarity {{ "%.3f"|format(hit.similarity) }}</p>
</li>{% endfor %}</ol></body></html>
"""


def write_sheet(path: Path, query: str, hits: Sequence[Hit], asked: bytes | None, with_pictures: bool) -> None:
    """Write the page. ``asked``: the image that was asked with. Everything in it is escaped."""
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(PAGE)
    found = [(hit, _picture(hit.place) if with_pictures else None) for hit in hits]
    page = template.render(query=query, asked=thumbnail(asked) if asked else None, found=found)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def thumbnail(file: bytes) -> str:
    """An encoded image as a data URI of a JPEG of `SIDE` px at most."""
    image = Image.fromarray(decode_image(file))
    image.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


def _picture(place: str) -> str | None:
    try:
        return thumbnail(read_place(place))
    except UserError:
        return None
