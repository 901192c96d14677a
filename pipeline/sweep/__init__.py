"""sweep-alpha: a grid of students from one cache, each trained and evaluated by the commands.

It runs train-student and evaluate-student as processes and imports no stage: a cell is what a
person would have run by hand, and a cell that dies takes nothing with it.
"""
