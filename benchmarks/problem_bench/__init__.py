"""Problems on which the best mixture is known, because many mixtures were really trained: `benchmarks/problems.py`."""
