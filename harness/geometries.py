"""Geometries of real models, scaled down for the interpreter in numbers of heads and tokens only, never in kind."""

from __future__ import annotations

from collections.abc import Mapping

from samebits.backends.problem import Geometry

# GQA group, head_dim, softcap and the presence of a window are each model's own; a window counts tokens and is scaled.
_GEOMETRIES = (
    # 32 query heads on 8: groups of 4.
    Geometry("llama3-8b", num_heads=4, num_kv_heads=1, head_dim=128, page_size=16),
    # 14 on 2: groups of 7, which fill no tile.
    Geometry("qwen2.5-0.5b", num_heads=7, num_kv_heads=1, head_dim=64, page_size=16),
    # 28 on 4: groups of 7 at head_dim 128, and here on larger pages.
    Geometry("qwen2.5-7b", num_heads=7, num_kv_heads=1, head_dim=128, page_size=64),
    # 32 on 8 with cross-attention to an image's tokens.
    Geometry("llama3.2-11b-vision", num_heads=8, num_kv_heads=2, head_dim=128, page_size=16),
    # 16 on 8, head_dim 256, window 4096, attention softcap 50, query_pre_attn_scalar 256.
    Geometry("gemma2-9b", num_heads=4, num_kv_heads=2, head_dim=256, page_size=16, window=40, softcap=50.0),
    # 71 on 1: all query heads share one key/value head.
    Geometry("falcon-7b", num_heads=8, num_kv_heads=1, head_dim=64, page_size=16),
    # 32 on 8, window 4096.
    Geometry("mistral-7b", num_heads=4, num_kv_heads=1, head_dim=128, page_size=16, window=33),
    # 32 on 32: every query head has its own; head_dim is no power of two.
    Geometry("phi-2", num_heads=2, num_kv_heads=2, head_dim=80, page_size=16),
    # 64 on 8 with a sink for each head, every other layer with a window of 128.
    Geometry("gpt-oss-20b", num_heads=8, num_kv_heads=1, head_dim=64, page_size=16, window=24, sinks=True),
    # 32 on 32 at head_dim 96.
    Geometry("phi-3-mini", num_heads=2, num_kv_heads=2, head_dim=96, page_size=16),
    # 128 on 128: its prefill has 128 elements of a head beside 64 rotated ones, and values padded to as many.
    Geometry("deepseek-v3-prefill", num_heads=2, num_kv_heads=2, head_dim=192, page_size=16),
    # 32 on 8 with an attention multiplier of 1/64 where head_dim is 64.
    Geometry("granite-3-2b", num_heads=4, num_kv_heads=1, head_dim=64, page_size=16, scale=1 / 64),
    # 24 on 8, 40 on 8 and 12 on 2: groups of 3, 5 and 6, which fill no tile either.
    Geometry("llama3.2-3b", num_heads=3, num_kv_heads=1, head_dim=128, page_size=16),
    Geometry("qwen2.5-14b", num_heads=5, num_kv_heads=1, head_dim=128, page_size=16),
    Geometry("qwen2.5-1.5b", num_heads=6, num_kv_heads=1, head_dim=128, page_size=16),
)

# Whole layers, for GPUs alone.
_FULL_GEOMETRIES = (
    Geometry("llama3-8b-full", num_heads=32, num_kv_heads=8, head_dim=128, page_size=16),
    # Five layers of six have the window.
    Geometry("gemma3-12b-full", num_heads=16, num_kv_heads=8, head_dim=256, page_size=16, window=1024),
)

GEOMETRIES: Mapping[str, Geometry] = {geometry.name: geometry for geometry in _GEOMETRIES}
FULL_GEOMETRIES: Mapping[str, Geometry] = {geometry.name: geometry for geometry in _FULL_GEOMETRIES}
