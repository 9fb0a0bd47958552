"""Images of a dataset with their captions on one self-contained HTML page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from PIL import Image

from siclip.data.images import decode_image
from siclip_platform.storage.atomic import write_text_atomically

SIDE = 224
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title><style>
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 80rem; padding: 1rem; }
ul.images { display: grid; gap: 1.25rem; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr));
            list-style: none; padding: 0; }
img { aspect-ratio: 1; background: #8881; border-radius: .5rem; object-fit: contain; width: 100%; }
.id { font: 12px ui-monospace, monospace; overflow-wrap: anywhere; }
ul.captions { margin: .25rem 0; padding-left: 1.1rem; overflow-wrap: anywhere; }
.note { white-space: pre-wrap; }
.source { font-size: 12px; }
</style></head><body>
<h1>{{ title }}</h1>
<p class="note">{{ note }}</p>
<ul class="images">{% for row in rows %}<li>
<img src="{{ row.picture }}" alt="{{ row.captions[0].text }}">
<div class="id">{{ row.id }} · {{ row.width }} × {{ row.height }}</div>
<ul class="captions">{% for caption in row.captions %}<li>{{ caption.text }}
{% if caption.source != "original" %}<span class="source">({{ caption.model or caption.source }})</span>{% endif %}
</li>{% endfor %}</ul></li>
{% endfor %}</ul></body></html>
"""


def write_contact_sheet(path: Path, title: str, note: str, rows: Iterable[dict[str, Any]]) -> None:
    """Write the page, completely or not at all. All text is escaped.

    Args:
        path: of the page.
        title: of the page.
        note: a paragraph below the title, with its line breaks.
        rows: of the dataset.
    """
    # Captions of the web are markup of strangers: everything is escaped, nothing may be undefined.
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(PAGE)
    shown = [{**row, "picture": _thumbnail(row["image"], f"sample {row['id']}")} for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(path, template.render(title=title, note=note, rows=shown))


def _thumbnail(data: bytes, where: str) -> str:
    """Return a data URI of a JPEG whose sides are at most `SIDE` pixels."""
    image = Image.fromarray(decode_image(data, where))
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
