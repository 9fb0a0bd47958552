"""How much of a source may be in memory at once; what a file claims is compared with these before it is read."""

from __future__ import annotations

MIB = 2**20
MAX_FILE_BYTES = 256 * MIB
"""An image, by itself or with the other members of its sample."""
MAX_TEXT_BYTES = MIB
"""A .txt, .json or .cls: parsed JSON takes up to a hundred times its size."""
MAX_SAMPLE_FILES = 1_000
"""Files with a common name."""
MAX_MEMBER_BYTES = 2**40
"""A member of a tar archive that is skipped: tarfile counts through its bytes even if the archive has ended."""
MAX_HEADER_BYTES = MIB
"""The extended header of a member of a tar archive: tarfile reads it as a whole."""
MAX_HEADERS = 8
"""Extended headers of one member, which tarfile reads by recursion."""
MAX_GLOBAL_KEYS = 64
"""Keys of all global headers of an archive, which tarfile keeps."""
MAX_DECODER_BYTES = 192 * MIB
"""Memory of the xz decoder; ``xz -9`` needs 65 MiB."""
MAX_LINE_BYTES = 4 * MIB
"""A line of a list."""
MAX_QUOTED_BYTES = 64 * 1024
"""A row of a CSV file over several lines: how far the end of a quoted field is searched."""
MAX_GROUP_ROWS = 2**24
"""Rows of a row group or of a record batch. Nulls take no space, so a file of kilobytes can claim billions."""
MAX_GROUP_BYTES = 8 * 1024 * MIB
"""Uncompressed size of a row group."""
MAX_PAGE_RATIO, RATIO_FROM = 100, 256 * MIB
"""Uncompressed to compressed size of a column of a row group, checked above `RATIO_FROM`: images do not compress."""
MAX_BATCH_BYTES = 512 * MIB
"""Decoded size of the rows that are read at once."""
MAX_EMBEDDING_BYTES = 16 * MIB
"""The embeddings of a sample, packed or unpacked."""
MAX_EMBEDDINGS = 1_024
"""Augmentations, and captions, of a sample with embeddings."""
MAX_ARROW_HEADER_BYTES = 64 * MIB
"""The header of a message of an Arrow file; that of a schema has the metadata of Hugging Face."""
MAX_PAGE_HEADER_BYTES = 16 * MIB
"""The header of a Parquet page, as in Arrow; old writers put the least and the largest value into it."""
