"""Speed and memory beside the peers, in one run; RESULTS.md keeps what was measured."""
