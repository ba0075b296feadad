"""OP-Mix and what it is compared with: each strategy says what a run plans, how it decides and what it does live.

    planned(config)        # stages and settings as the strategy wants them; the configuration alone
    start_rule(config, ...)  # a stage's first mixture, where the strategy has its own
    decider(config)        # what happens at a decision
    live(config)           # what happens after every step, if anything

`rules.py` needs the configuration only; `registry.py` knows the code that trains.
"""
