"""One live version in all workers: archives are shared, every worker follows the live key, a roll-out can be undone."""
