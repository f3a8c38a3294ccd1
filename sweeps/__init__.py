"""The commands, and the rooms behind them."""
