"""Number formats: `table` holds the rows of facts, `rounding` the one set of functions over them."""

from npu.formats.table import FORMAT_OF_CODE, FORMATS, MX_BLOCK, Format

__all__ = ["FORMATS", "FORMAT_OF_CODE", "MX_BLOCK", "Format"]
