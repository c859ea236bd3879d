"""The backends, one file each, and the contract they keep.

`pyproject.toml` declares each as an entry point, as a third party's does; what an installer keeps of that has no order.
"""

# The bundled backends in the order of lists and tables; others follow by name.
BUNDLED_ORDER = ("FLASH_ATTN", "TRITON_ATTN", "FLEX_ATTENTION", "AITER", "CPU")
