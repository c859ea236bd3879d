"""What a CUDA graph needs: batches at padded sizes, planned or captured once, through buffers that are refilled."""
