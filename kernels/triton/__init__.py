"""The bundled Triton kernels."""
