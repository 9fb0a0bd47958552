"""The tables of `storage.py` as Markdown."""

from __future__ import annotations

from typing import Any

BUDGET = 1e12


def report(result: dict[str, Any]) -> str:
    """The page of docs/results."""
    pairs = result["pairs"]
    images, captions, embeddings = (result[part] for part in ("images", "captions", "embeddings"))
    own = next(row for row in images if (row["size"], row["quality"]) == (256, 90))
    base = result["stated_image_bytes"] + own["other_bytes"]
    three = next(row["bytes"] for row in captions if row["captions"] == 3)
    lines = [
        "# Storage of CC12M-SYN",
        "",
        f"Made by the command below on {result['rows']:,} rows in row groups of 250; commit {result['commit']}; "
        + ", ".join(f"{name} {number}" for name, number in result["versions"].items())
        + ". All figures: `benchmarks/results/storage.json`.",
        "",
        "```sh",
        "python benchmarks/storage.py --report docs/results/storage.md",
        "```",
        "",
        f"GB are for {pairs:,} pairs, about as many of CC12M's 12.4 million images as can still be reached, against "
        "a budget of 1 TB.",
        "",
        "## Images and original captions",
        "",
        "Not CC12M: crops of three photographs that scikit-learn and matplotlib ship, resized and encoded by `data "
        "import`. How large a JPEG is depends on the picture, so the rows compare settings; the size of CC12M's own "
        "images is **not measured here**. Its only source is img2dataset's example (`dataset_examples/cc12m.md`), "
        "which states 331 GB at 256 px (quality 95 and white borders by default) without the number of images: "
        "33,100 bytes an image at 10 million, which is what the totals below take, and 29,200 at the 11.3 million "
        "that its 630 a second for 5 hours would be.",
        "",
        "| shorter side | JPEG quality | bytes of the JPEG | in the shard | the rest of the row | GB |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {row['size']} px | {row['quality']} | {row['jpeg_bytes']:,.0f} | {row['stored_bytes']:,.0f} | "
            f"{row['other_bytes']:,.0f} | {(row['stored_bytes'] + row['other_bytes']) * pairs / 1e9:,.0f} |"
            for row in images
        ),
        "",
        "In the shard zstd shortens what all JPEGs have in common, their tables. The rest: an original caption of 20 "
        "words, the id, sizes and Parquet's own. The words are runs of Python's language reference.",
        "",
        "## Synthetic captions (`data caption`)",
        "",
        "| captions of 10 words | bytes a pair | GB |",
        "| ---: | ---: | ---: |",
        *(f"| {row['captions']} | {row['bytes']:,.0f} | {row['bytes'] * pairs / 1e9:,.1f} |" for row in captions),
        "",
        "## Teacher embeddings (`data embed`), and all together",
        "",
        "K crops of each image with their boxes, one original and three synthetic captions. The total adds images "
        f"as img2dataset states them, the measured rest of the row and three captions: {base + three:,.0f} bytes.",
        "",
        "| width | numbers | K | bytes a pair | GB | with images and captions, GB | of 1 TB |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in embeddings:
        total = (base + three + row["bytes"]) * pairs
        fits = f"{total / BUDGET:.0%}" + ("" if total <= BUDGET else ", too much")
        lines.append(
            f"| {row['width']} | {row['numbers']} | {row['augmentations']} | {row['bytes']:,.0f} | "
            f"{row['bytes'] * pairs / 1e9:,.0f} | {total / 1e9:,.0f} | {fits} |"
        )
    return "\n".join(lines) + "\n"
