"""The command medquant: main, and what each command does."""
