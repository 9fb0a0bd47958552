"""Format the results of `storage.py` as Markdown."""

from __future__ import annotations

from typing import Any

BUDGET = 1e12  # bytes: one disk of 1 TB


def report(result: dict[str, Any]) -> str:
    """The page docs/results/storage.md."""
    pairs = result["pairs"]
    images, captions, embeddings = (result[part] for part in ("images", "captions", "embeddings"))
    own = next(row for row in images if (row["size"], row["quality"]) == (256, 90))
    base = result["stated_image_bytes"] + own["other_bytes"]
    three = next(row["bytes"] for row in captions if row["captions"] == 3)
    lines = [
        "# Storage of CC12M-SYN",
        "",
        f"Measured by the command below on {result['rows']:,} rows in row groups of 250; commit {result['commit']}; "
        + ", ".join(f"{name} {number}" for name, number in result["versions"].items())
        + ". All values: `benchmarks/results/storage.json`.",
        "",
        "```sh",
        "python benchmarks/storage.py --report docs/results/storage.md",
        "```",
        "",
        f"GB are for {pairs:,} pairs: of CC12M's 12,423,374 images those that could still be downloaded in October "
        "2025, according to issue 9 of google-research-datasets/conceptual-12m. The budget is 1 TB.",
        "",
        "## Images and original captions",
        "",
        "These images are not from CC12M: they are crops of three photographs that scikit-learn and matplotlib ship, "
        "resized and encoded by `data import`. The size of a JPEG depends on the image, so the rows only compare "
        "settings; the size of CC12M's own images is **not measured here**. Its only source is img2dataset's example "
        "(`dataset_examples/cc12m.md`), which states 331 GB at 256 px (with its defaults, quality 95 and white "
        "borders) but not the number of images. That is 33,100 bytes per image for 10 million images, which the "
        "totals below use, or 29,200 for the 11.3 million that its 630 per second for 5 hours would give.",
        "",
        "| shorter side | JPEG quality | bytes of the JPEG | bytes in the shard | other bytes of the row | GB |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {row['size']} px | {row['quality']} | {row['jpeg_bytes']:,.0f} | {row['stored_bytes']:,.0f} | "
            f"{row['other_bytes']:,.0f} | {(row['stored_bytes'] + row['other_bytes']) * pairs / 1e9:,.0f} |"
            for row in images
        ),
        "",
        "In the shard, zstd compresses the tables that all JPEGs have in common. The other bytes are an original "
        "caption of 20 words, the id, the image size and Parquet's overhead. The words are from Python's language "
        "reference.",
        "",
        "## Synthetic captions (`data caption`)",
        "",
        "| captions of 10 words | bytes per pair | GB |",
        "| ---: | ---: | ---: |",
        *(f"| {row['captions']} | {row['bytes']:,.0f} | {row['bytes'] * pairs / 1e9:,.1f} |" for row in captions),
        "",
        "## Teacher embeddings (`data embed`), and the total",
        "",
        "K crops of each image with their boxes, one original and three synthetic captions. The total adds the image "
        "size that img2dataset states, the measured other bytes of the row and three captions: "
        f"{base + three:,.0f} bytes per pair.",
        "",
        "| width | numbers | K | bytes per pair | GB | with images and captions, GB | of 1 TB |",
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
