"""The operator on CPUs: native kernels (`src/`), the plans and dense copies they keep."""
