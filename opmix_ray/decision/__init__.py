"""A decision: probes, candidates, law, proposal, and the check that says whether the mixture changes."""
