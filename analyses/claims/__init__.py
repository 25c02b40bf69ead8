"""What papers claim, and how tables of runs are judged by it: no commands of their own."""
