"""Which question we ask: evaluators, strategies, the NNI runtime. A regular package: found first."""
