"""The bundled C++ kernel for processors, and what compiles and calls it."""
