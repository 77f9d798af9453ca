"""What `payoff.py` is made of: the tables of tasks and starts, the jobs, and the page."""
