"""OP-Mix and what it is compared with: each strategy is one class (`base.Strategy`); `registry` names them all."""
