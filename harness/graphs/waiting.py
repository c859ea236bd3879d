"""Whether a run waits for the host, which no graph can capture."""

from __future__ import annotations

from collections.abc import Callable

import torch


def waits_for_host(action: Callable[[], None]) -> list[str]:
    """Runs something on a GPU while every wait for it is an error, and says which there was: a sentence, or none.

    Args:
        action: what to run; it has run before, so that nothing is left to compile.

    Raises:
        RuntimeError: it failed for another reason.
    """
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        action()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return [f"run waits for the host: {' '.join(str(error).split())[:200]}"]
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return []
